"""Surveys that add integers in one read: norms, overlaps, inner products, counts (csrc/include/fuseo1/survey.h)."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import (
    BLOCK,
    MOST_SQUARABLE,
    RINT_MAGIC_BITS,
    add_quanta,
    block_peaks,
    exponent_of,
    is_finite,
    load_wide,
    magnitude,
    positions,
    quanta,
    task_vectors,
    total,
)
from .scan import count_nonfinite
from .select import CLAMP, EVERY, SELECT_WORDS, is_selected, part


@triton.jit
def finite_elements(inputs, start, at, left, d, state, TARGETS: tl.constexpr):
    """The mask of elements whose s is finite; counts the others."""
    s = total(d, TARGETS)
    finite = is_finite(s)
    if tl.min(tl.min(finite.to(tl.int32), axis=1), axis=0) == 0:
        count_nonfinite(inputs, start, at, left, s, state, TARGETS)
    return finite


@triton.jit
def add_selected_quanta(d, q, peaks, select, start, at, to, KIND: tl.constexpr, ROWS: tl.constexpr):
    """add_quanta of the selected elements, if the selection may leave any out."""
    if KIND != EVERY and KIND != CLAMP:
        chosen = is_selected(d, select, start, at, KIND, ROWS)
        add_quanta(tl.where(chosen, q, 0.0), peaks, to)


@triton.jit(do_not_specialize=["first", "numel"])
def add_norms(
    inputs,  # tuple of TARGETS + 1 pointers: [numel], base first; bf16 as int16
    selects,  # [TARGETS, 6] int64: each target's selection
    bins,  # [STRIPES, 2 * TARGETS, 256] int64: of all elements; of the selected ones if some may be left out
    state,  # [64] int64
    first,  # the first program's tile
    numel,
    WHOLE: tl.constexpr,  # every tile is
    KINDS: tl.constexpr,  # select.py
    TARGETS: tl.constexpr,
    STRIPES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A program takes one tile."""
    tile = tl.program_id(0) + first
    start = tile.to(tl.int64) * (ROWS * BLOCK)
    at = positions(ROWS)
    left = tl.minimum(numel - start, ROWS * BLOCK).to(tl.int32)
    _, d = task_vectors(inputs, start, at, left, WHOLE, TARGETS)
    sound = finite_elements(inputs, start, at, left, d, state, TARGETS)
    q = ()
    for i in tl.static_range(TARGETS):
        q = q + (tl.where(sound, tl.abs(d[i]), 0.0),)
    peaks = block_peaks(q, TARGETS)
    to = bins + (tile % STRIPES) * (2 * TARGETS * BLOCK)
    for i in tl.static_range(TARGETS):
        add_quanta(q[i], peaks[i], to + i * BLOCK)
        select, chosen = selects + i * SELECT_WORDS, to + (TARGETS + i) * BLOCK
        add_selected_quanta(
            d[i], q[i], peaks[i], select, start, at, chosen, (KINDS >> 3 * i) & 7, ROWS
        )


@triton.jit(do_not_specialize=["first", "numel"])
def add_overlaps(
    inputs,
    selects,  # [TARGETS, 6] int64: each target's selection
    counts,  # [STRIPES, 2, TARGETS] int64: elements that a target has together with others, and alone
    state,  # [64] int64
    first,
    numel,
    WHOLE: tl.constexpr,
    KINDS: tl.constexpr,  # select.py
    TARGETS: tl.constexpr,
    STRIPES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A program takes one tile."""
    tile = tl.program_id(0) + first
    start = tile.to(tl.int64) * (ROWS * BLOCK)
    at = positions(ROWS)
    left = tl.minimum(numel - start, ROWS * BLOCK).to(tl.int32)
    _, d = task_vectors(inputs, start, at, left, WHOLE, TARGETS)
    sound = finite_elements(inputs, start, at, left, d, state, TARGETS)
    has = ()
    owners = at * 0
    for i in tl.static_range(TARGETS):
        z = part(d[i], selects + i * SELECT_WORDS, start, at, (KINDS >> 3 * i) & 7, ROWS)
        has = has + (sound & (z != 0.0),)
        owners += has[i].to(tl.int32)
    for i in tl.static_range(TARGETS):
        to = counts + (tile % STRIPES) * (2 * TARGETS) + i
        for alone in tl.static_range(2):
            mine = has[i] & ((owners == 1) == (alone == 1))
            number = tl.sum(tl.sum(mine.to(tl.int32), axis=1), axis=0)
            tl.atomic_add(
                to + alone * TARGETS, number.to(tl.int64), mask=number != 0, sem="relaxed"
            )


@triton.jit(do_not_specialize=["first", "numel"])
def count_nonzero(
    inputs,
    counts,  # [STRIPES, TARGETS] int64: magnitudes that are not 0
    state,  # [64] int64
    first,
    numel,
    WHOLE: tl.constexpr,
    TARGETS: tl.constexpr,
    STRIPES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A program takes one tile."""
    tile = tl.program_id(0) + first
    start = tile.to(tl.int64) * (ROWS * BLOCK)
    at = positions(ROWS)
    left = tl.minimum(numel - start, ROWS * BLOCK).to(tl.int32)
    _, d = task_vectors(inputs, start, at, left, WHOLE, TARGETS)
    sound = finite_elements(inputs, start, at, left, d, state, TARGETS)
    for i in tl.static_range(TARGETS):
        moved = (sound & (magnitude(d[i], inputs, start + at, TARGETS) != 0.0)).to(tl.int32)
        number = tl.sum(tl.sum(moved, axis=1), axis=0)
        to = counts + (tile % STRIPES) * TARGETS + i
        tl.atomic_add(to, number.to(tl.int64), mask=number != 0, sem="relaxed")


@triton.jit
def add_products(x, y, to):
    """Adds each block's sum of signed integers of finite x * y to the sum of its exponent in `to`: [256] int64."""
    p = x * y
    size = tl.abs(p)
    exponent = exponent_of(block_peaks((size,), 1)[0])
    t = quanta(size, exponent[:, None]) - RINT_MAGIC_BITS
    # 256 of up to 2^23 make up to 2^31: one more than int32 holds.
    sums = tl.sum(tl.where(p < 0.0, -t, t).to(tl.int64), axis=1)
    tl.atomic_add(to + exponent, sums, mask=sums != 0, sem="relaxed")


@triton.jit(do_not_specialize=["first", "numel"])
def add_gram(
    inputs,
    bins,  # [STRIPES, pairs, 256] int64: of v_1 with v_1, v_2, ..., of v_2 with v_2, ...
    state,  # [64] int64
    first,
    numel,
    WHOLE: tl.constexpr,
    OF_INPUTS: tl.constexpr,  # v are base and targets; else task vectors
    TARGETS: tl.constexpr,
    STRIPES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A program takes one tile."""
    V: tl.constexpr = TARGETS + 1 if OF_INPUTS else TARGETS
    tile = tl.program_id(0) + first
    start = tile.to(tl.int64) * (ROWS * BLOCK)
    at = positions(ROWS)
    left = tl.minimum(numel - start, ROWS * BLOCK).to(tl.int32)
    base = load_wide(inputs[0], start, at, left, WHOLE)
    x, d = (base,), ()
    for i in tl.static_range(TARGETS):
        x = x + (load_wide(inputs[i + 1], start, at, left, WHOLE),)
        d = d + (x[i + 1] - base,)
    sound = finite_elements(inputs, start, at, left, d, state, TARGETS)
    if OF_INPUTS == 0:
        x = d
    v = ()
    for i in tl.static_range(V):
        near = tl.minimum(tl.maximum(x[i], -MOST_SQUARABLE), MOST_SQUARABLE)
        v = v + (tl.where(sound, near, 0.0),)
    to = bins + (tile % STRIPES) * (V * (V + 1) // 2 * BLOCK)
    for i in tl.static_range(V):
        for j in tl.static_range(i, V):
            add_products(v[i], v[j], to)
            to += BLOCK
