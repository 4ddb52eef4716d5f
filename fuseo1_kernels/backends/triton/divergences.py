"""Divergences of a target's rows from the base's: csrc/include/fuseo1/survey.h states the formulas, all in fp64."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from .arithmetic import LARGEST, is_finite, load_wide
from .sums import finite_elements

LANES = tl.constexpr(8)  # element j of a row is added to lane j mod 8, in order
LEAST_SHARE = tl.constexpr(1e-8)

# x + MAGIC rounds x to an integer, which is then in the low bits.
MAGIC = tl.constexpr(1.5 * 2.0**52)
MANTISSA_BITS = tl.constexpr(52)
LOG2_E = tl.constexpr(float.fromhex("0x1.71547652b82fep0"))
LN2 = tl.constexpr(float.fromhex("0x1.62e42fefa39efp-1"))
LN2_HIGH = tl.constexpr(float.fromhex("0x1.62e42feep-1"))
LN2_LOW = tl.constexpr(float.fromhex("0x1.a39ef35793c76p-33"))
EXP_FACTORS = tl.constexpr(tuple(1.0 / math.factorial(n) for n in range(13, -1, -1)))
LOG_FACTORS = tl.constexpr(tuple(1.0 / n for n in range(21, 1, -2)))
LEAST_MANTISSA = tl.constexpr(0x3FE6A09E00000000)  # bits of 0x1.6a09ep-1


@triton.jit
def exp_of(x):
    """exp(x) for x <= 0."""
    shifted = x * LOG2_E + MAGIC
    k = shifted - MAGIC
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    p = tl.full(x.shape, EXP_FACTORS[0], tl.float64)
    for n in tl.static_range(1, 14):
        p = p * r + EXP_FACTORS[n]
    bits = p.to(tl.int64, bitcast=True) + (shifted.to(tl.int64, bitcast=True) << MANTISSA_BITS)
    return tl.where(x > -700.0, bits.to(tl.float64, bitcast=True), 0.0)


@triton.jit
def log_of(y):
    """log(y) for normal y > 0."""
    bits = y.to(tl.int64, bitcast=True)
    k = (bits - LEAST_MANTISSA) >> MANTISSA_BITS
    f = (bits - (k << MANTISSA_BITS)).to(tl.float64, bitcast=True) - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = s + s
    p = tl.full(y.shape, LOG_FACTORS[0], tl.float64)
    for n in tl.static_range(1, 10):
        p = p * z + LOG_FACTORS[n]
    return k.to(tl.float64) * LN2 + (w + w * (z * p))


@triton.jit
def load_tile(inputs, start, tile, row, numel, STEPS: tl.constexpr):
    """(base, target, exist, at) of tile `tile` of each row: STEPS * LANES elements. start: [ROWS] int64, the rows'."""
    place = tile * (STEPS * LANES) + tl.arange(0, STEPS * LANES)[None, :]
    exist = (place < row) & (start < numel)[:, None]
    at = tl.where(exist, start[:, None] + place, numel)
    base = load_wide(inputs[0], 0, at, numel, False)
    return base, load_wide(inputs[1], 0, at, numel, False), exist, at


@triton.jit
def exponentials(inputs, start, tile, row, numel, base_most, target_most, STEPS: tl.constexpr):
    """(of base, of target, takes_part) for a tile; 0 where an element takes no part."""
    base, target, exist, _ = load_tile(inputs, start, tile, row, numel, STEPS)
    takes_part = exist & is_finite(target - base)
    base_e = exp_of(base.to(tl.float64) - base_most[:, None].to(tl.float64))
    target_e = exp_of(target.to(tl.float64) - target_most[:, None].to(tl.float64))
    return tl.where(takes_part, base_e, 0.0), tl.where(takes_part, target_e, 0.0), takes_part


@triton.jit
def add_in_order(sums, terms, ROWS: tl.constexpr, STEPS: tl.constexpr):
    """The lanes' sums, [ROWS, LANES], plus a tile's terms step by step: the other steps' terms are masked to 0."""
    terms = tl.reshape(terms, [ROWS, STEPS, LANES])
    number = tl.arange(0, STEPS)[None, :, None]
    for step in tl.static_range(STEPS):
        sums = sums + tl.sum(tl.where(number == step, terms, 0.0), axis=1)
    return sums


@triton.jit
def add_lanes(sums, ROWS: tl.constexpr):
    """[ROWS]: the lanes' sums, added by halves."""
    sums = tl.sum(tl.reshape(sums, [ROWS, 2, 4]), axis=1)
    sums = tl.sum(tl.reshape(sums, [ROWS, 2, 2]), axis=1)
    return tl.sum(sums, axis=1)


@triton.jit(do_not_specialize=["row", "numel"])
def find_divergences(
    inputs,  # (base, target): pointers to [numel]; bf16 as int16
    divergences,  # [numel / row] fp32
    state,  # [64] int64
    row,
    numel,
    ROWS: tl.constexpr,
):
    """A program takes ROWS rows, in tiles of ROWS steps of eight elements of each row."""
    row, numel = tl.cast(row, tl.int64), tl.cast(numel, tl.int64)
    number = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = number * row
    tiles = tl.cdiv(row, ROWS * LANES)
    base_most = tl.full([ROWS], -LARGEST, tl.float32)
    target_most = base_most
    for tile in range(0, tiles):
        base, target, exist, at = load_tile(inputs, start, tile, row, numel, ROWS)
        takes_part = exist & finite_elements(inputs, 0, at, numel, (target - base,), state, 1)
        base, target = tl.where(takes_part, base, -LARGEST), tl.where(takes_part, target, -LARGEST)
        base_most = tl.maximum(base_most, tl.max(base, axis=1))
        target_most = tl.maximum(target_most, tl.max(target, axis=1))
    base_sums = tl.zeros([ROWS, LANES], tl.float64)
    target_sums = base_sums
    for tile in range(0, tiles):
        base_e, target_e, _ = exponentials(
            inputs, start, tile, row, numel, base_most, target_most, ROWS
        )
        base_sums = add_in_order(base_sums, base_e, ROWS, ROWS)
        target_sums = add_in_order(target_sums, target_e, ROWS, ROWS)
    base_sum, target_sum = add_lanes(base_sums, ROWS), add_lanes(target_sums, ROWS)
    sums = tl.zeros([ROWS, LANES], tl.float64)
    for tile in range(0, tiles):
        base_e, target_e, takes_part = exponentials(
            inputs, start, tile, row, numel, base_most, target_most, ROWS
        )
        p = target_e / target_sum[:, None] + LEAST_SHARE
        q = base_e / base_sum[:, None] + LEAST_SHARE
        terms = tl.where(takes_part, p * log_of(p / q), 0.0)
        sums = add_in_order(sums, terms, ROWS, ROWS)
    found = add_lanes(sums, ROWS)
    found = tl.where(found > 0.0, found, 0.0).to(tl.float32)
    tl.store(divergences + number, found, mask=start < numel)
