"""fuse for SCE's parameters (csrc/include/fuseo1/fuse.h): one read, one write."""

from __future__ import annotations

import triton
import triton.language as tl

from ..arrays import BY_NAME
from .arithmetic import (
    BLOCK,
    bits_of,
    float_of,
    positions,
    spread,
    task_vectors,
    total,
)
from .state import P_AT_HIGH, P_AT_LOW, P_FLOOR, P_WEIGHTS, R_WRITTEN

# The output's dtype.
TO_BF16 = tl.constexpr(BY_NAME["bfloat16"].abi)
TO_FP16 = tl.constexpr(BY_NAME["float16"].abi)


@triton.jit
def round_from(bits, outward, OUT: tl.constexpr):
    """Bits of the output's dtype, in the low bits of an int32, rounded once from the bits of an fp32.

    outward: > 0 where the exact number, whose nearest fp32 this is, is farther from 0, < 0 where it is nearer to 0. It
    decides ties of bf16. For fp16 it turns the fp32 into one rounded to odd, from which rounding again is correct.
    """
    if OUT == TO_BF16:
        even = (bits >> 16) & 1
        up = tl.where(outward > 0.0, 1, tl.where(outward < 0.0, 0, even))
        rounded = ((bits + 0x7FFF + up) >> 16) & 0xFFFF
    elif OUT == TO_FP16:
        step = tl.where(outward > 0.0, 1, tl.where(outward < 0.0, -1, 0))
        odd = float_of(tl.where(bits & 1 == 0, bits + step, bits))
        rounded = odd.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    else:
        rounded = bits
    return rounded


@triton.jit
def round_fp64(x, OUT: tl.constexpr):
    """fp64 x: the nearest fp32, and round_from's bits, rounded once."""
    near = x.to(tl.float32)
    bits = bits_of(near)
    error = x - near.to(tl.float64)
    return near, round_from(bits, tl.where(bits < 0, -error, error), OUT)


@triton.jit
def store_rounded(
    out, start, at, left, bits, is_number, result, WHOLE: tl.constexpr, OUT: tl.constexpr
):
    """Writes a tile of round_from's bits, or the quiet NaN where not is_number. Counts what is not finite."""
    nan: tl.constexpr = 0x7FC0 if OUT == TO_BF16 else 0x7E00 if OUT == TO_FP16 else 0x7FC00000
    infinite: tl.constexpr = 0x7F80 if OUT == TO_BF16 else 0x7C00 if OUT == TO_FP16 else 0x7F800000
    bits = tl.where(is_number, bits, nan)
    if OUT == TO_BF16 or OUT == TO_FP16:
        magnitude = bits & 0x7FFF
        stored = bits.to(tl.int16)
    else:
        magnitude = bits & 0x7FFFFFFF
        stored = bits
    if WHOLE:
        tl.store(out + start + at, stored)
    else:
        tl.store(out + start + at, stored, mask=at < left)
    if tl.max(tl.max(magnitude, axis=1), axis=0) >= infinite:
        bad = tl.sum(tl.sum((magnitude >= infinite).to(tl.int32), axis=1), axis=0)
        tl.atomic_add(result + R_WRITTEN, bad.to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["first", "offset", "numel"])
def fuse_tiles(
    inputs,  # tuple of TARGETS + 1 pointers: [numel], base first; bf16 as int16
    out,  # [numel]: int16 (bf16, fp16) or int32 (fp32) bits, written
    numbers,  # [24] fp64
    tie_limit,  # [1] int64
    result,  # [64] int64: R_WRITTEN is added to
    first,  # the first program's tile
    offset,  # flat index of element 0
    numel,
    WHOLE: tl.constexpr,  # every tile is
    MASKED: tl.constexpr,
    FLOORED: tl.constexpr,  # the divisor may have a floor
    OUT: tl.constexpr,
    TARGETS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A program takes one tile."""
    start = (tl.program_id(0) + first).to(tl.int64) * (ROWS * BLOCK)
    at = positions(ROWS)
    left = tl.minimum(numel - start, ROWS * BLOCK).to(tl.int32)
    b, d = task_vectors(inputs, start, at, left, WHOLE, TARGETS)
    s = total(d, TARGETS)
    # With signs flipped where s < 0, "has the elected sign" is "> 0".
    flip = tl.where(s >= 0.0, 0, -0x80000000)
    # b + -0.0 is b, for b = -0.0 too. From its bits: as a number it loses its sign in some versions of Triton.
    minus_zero = float_of(tl.full([ROWS, BLOCK], -0x80000000, tl.int32)).to(tl.float64)
    num = minus_zero
    den = tl.zeros([ROWS, BLOCK], tl.float64)
    if MASKED:
        x = spread(d, s, TARGETS)
        most = tl.load(tie_limit) - offset - start
        tie = at <= tl.minimum(tl.maximum(most, -1), ROWS * BLOCK).to(tl.int32)
        selected = (x > tl.load(numbers + P_AT_HIGH).to(tl.float32)) | (
            (x >= tl.load(numbers + P_AT_LOW).to(tl.float32)) & tie
        )
    for i in tl.static_range(TARGETS):
        weight = tl.load(numbers + P_WEIGHTS + i)
        survives = float_of(bits_of(d[i]) ^ flip) > 0.0
        if MASKED:
            survives = survives & selected
        num = num + tl.where(survives, weight * d[i].to(tl.float64), minus_zero)
        den = den + tl.where(survives, weight, 0.0)
    if FLOORED:
        den = tl.maximum(den, tl.load(numbers + P_FLOOR))
    merged, bits = round_fp64(b.to(tl.float64) + num / tl.where(den == 0.0, 1.0, den), OUT)
    # s - s is 0, or NaN where s is not finite.
    is_number = (s - s == 0.0) & (merged == merged)
    store_rounded(out, start, at, left, bits, is_number, result, WHOLE, OUT)
