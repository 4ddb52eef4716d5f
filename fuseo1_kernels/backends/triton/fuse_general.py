"""fuse for any parameters: every election, selection, divisor and scale of csrc/include/fuseo1/fuse.h."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import (
    BLOCK,
    bits_of,
    divide,
    float_of,
    load_wide,
    positions,
    spread,
    task_vectors,
    total,
)
from .fuse_sce import round_fp64, store_rounded
from .select import SELECT_WORDS, in_cut, part

# A sum of shares whose magnitude is below this counts as 0, but for SUM, whose weights cannot cancel.
LEAST_DIVISOR = tl.constexpr(2.0**-27)

# How signs are elected, as in fuse.h.
SUM = tl.constexpr(0)
WEIGHTED = tl.constexpr(1)
COUNT = tl.constexpr(2)
NONE = tl.constexpr(3)

# The divisor of the sum.
BY_SHARES = tl.constexpr(0)  # the sum of the survivors' shares
BY_FLOOR = tl.constexpr(1)  # the same, but at least the floor
BY_NUMBER = tl.constexpr(2)
BY_ONE = tl.constexpr(3)

# Places of the scalars: [56] fp64.
S_WEIGHTS = tl.constexpr(0)  # [16]
S_SHARES = tl.constexpr(16)  # [16]
S_DIVISOR = tl.constexpr(32)  # or the floor
S_SCALE = tl.constexpr(33)
S_BASE_SCALE = tl.constexpr(34)
S_ALONE = tl.constexpr(35)  # [16]
SCALARS = 56


@triton.jit
def finite(x):
    """Whether fp32 or fp64 x is finite."""
    return x - x == 0.0


@triton.jit
def elect_signs(z, t, ELECT: tl.constexpr, TARGETS: tl.constexpr):
    """(survives, sound): the mask of each target's survivors, and the mask of elements whose votes are finite."""
    votes = t
    if ELECT == SUM:
        votes = z
    if ELECT == COUNT:
        signs = ()
        sound = finite(t[0])
        for i in tl.static_range(TARGETS):
            signs = signs + ((t[i] > 0.0).to(tl.int32) - (t[i] < 0.0).to(tl.int32),)
            sound = sound & finite(t[i])
        positive = total(signs, TARGETS) >= 0
    else:
        s = total(votes, TARGETS)
        sound = finite(s)
        positive = s >= 0.0
    survives = ()
    for i in tl.static_range(TARGETS):
        if ELECT == NONE:
            survives = survives + (t[i] != 0.0,)
        else:
            survives = survives + (tl.where(positive, votes[i] > 0.0, votes[i] < 0.0),)
    return survives, sound


@triton.jit
def merged_delta(
    z,
    chosen,
    minus_zero,
    scalars,
    ELECT: tl.constexpr,
    DIVISOR: tl.constexpr,
    MASKED: tl.constexpr,
    ALONE: tl.constexpr,
    TARGETS: tl.constexpr,
):
    """(delta, sound): delta is added to the base; sound is the mask of elements whose votes are finite.

    z: the selected part of each task vector; chosen: the mask by score, if MASKED;
    minus_zero: a tile of -0.0, because b + -0.0 is b, for b = -0.0 too.
    """
    t = ()
    for i in tl.static_range(TARGETS):
        t = t + (tl.load(scalars + S_WEIGHTS + i) * z[i].to(tl.float64),)
    survives, sound = elect_signs(z, t, ELECT, TARGETS)
    num = minus_zero
    den = tl.zeros(z[0].shape, tl.float64)
    any_survives = den != 0.0
    several, factor = any_survives, den + 1.0
    for i in tl.static_range(TARGETS):
        alive = survives[i]
        if MASKED:
            alive = alive & chosen
        num = num + tl.where(alive, t[i], minus_zero)
        den = den + tl.where(alive, tl.load(scalars + S_SHARES + i), 0.0)
        if ALONE:
            several = several | (any_survives & alive)
            factor = tl.where(alive, tl.load(scalars + S_ALONE + i), factor)
        any_survives = any_survives | alive
    if ALONE:
        num = tl.where(several, num, factor * num)
    if DIVISOR == BY_ONE:
        mean = num
    elif DIVISOR == BY_NUMBER:
        mean = num / tl.load(scalars + S_DIVISOR)
    elif DIVISOR == BY_FLOOR:
        floor = tl.load(scalars + S_DIVISOR)
        mean = num / tl.where(den > floor, den, floor)
    else:
        if ELECT == SUM:
            is_zero = den == 0.0
        else:
            is_zero = tl.abs(den) < LEAST_DIVISOR
        mean = num / tl.where(is_zero, 1.0, den)
    delta = tl.load(scalars + S_SCALE) * mean
    return tl.where(any_survives, delta, minus_zero), sound


@triton.jit(do_not_specialize=["first", "offset", "numel"])
def fuse_general_tiles(
    inputs,  # tuple of TARGETS + 1 pointers: [numel], base first; bf16 as int16
    out,  # [numel]: int16 (bf16, fp16) or int32 (fp32) bits, written
    scalars,  # [56] fp64
    selects,  # [TARGETS + 1, 6] int64: each target's selection; then the mask by score, as a BAND
    result,  # [64] int64: R_WRITTEN is added to
    first,  # the first program's tile
    offset,  # flat index of element 0, a multiple of 256
    numel,
    WHOLE: tl.constexpr,  # every tile is
    ELECT: tl.constexpr,
    KINDS: tl.constexpr,  # select.py
    DIVISOR: tl.constexpr,
    MASKED: tl.constexpr,
    ALONE: tl.constexpr,  # a target that survives alone has a factor
    OUT: tl.constexpr,
    TARGETS: tl.constexpr,  # 0 or more
    ROWS: tl.constexpr,
):
    """A program takes one tile."""
    start = (tl.program_id(0) + first).to(tl.int64) * (ROWS * BLOCK)
    flat = start + offset
    at = positions(ROWS)
    left = tl.minimum(numel - start, ROWS * BLOCK).to(tl.int32)
    base_scale = tl.load(scalars + S_BASE_SCALE)
    # -0.0 from its bits: written as a number, it loses its sign in some versions of Triton.
    minus_zero = float_of(tl.full([ROWS, BLOCK], -0x80000000, tl.int32)).to(tl.float64)
    if TARGETS == 0:
        b = base_scale * load_wide(inputs[0], start, at, left, WHOLE).to(tl.float64)
        delta, sound = minus_zero, b == b
    else:
        base, d = task_vectors(inputs, start, at, left, WHOLE, TARGETS)
        b = base_scale * base.to(tl.float64)
        chosen = at >= 0
        if MASKED:
            score = bits_of(divide(spread(d, total(d, TARGETS), TARGETS), TARGETS))
            chosen = in_cut(score, selects + TARGETS * SELECT_WORDS, flat, at, ROWS)
        z = ()
        for i in tl.static_range(TARGETS):
            z = z + (part(d[i], selects + i * SELECT_WORDS, flat, at, (KINDS >> 3 * i) & 7, ROWS),)
        delta, sound = merged_delta(
            z, chosen, minus_zero, scalars, ELECT, DIVISOR, MASKED, ALONE, TARGETS
        )
    merged, bits = round_fp64(b + delta, OUT)
    store_rounded(out, start, at, left, bits, sound & (merged == merged), result, WHOLE, OUT)
