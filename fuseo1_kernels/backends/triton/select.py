"""select: the elements of one target that take part (csrc/include/fuseo1/select.h)."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import BLOCK, bits_of, by_rows, float_of, is_finite
from .philox import words

# Kinds of selections, as in select.h. KINDS has those of all targets: (KINDS >> 3 * i) & 7.
EVERY = tl.constexpr(0)
BAND = tl.constexpr(1)
DRAW = tl.constexpr(2)
CLAMP = tl.constexpr(4)
RANKED = tl.constexpr(5)
BAND_BY_ROWS = tl.constexpr(6)  # BAND with factors

# int64 words of a packed selection. BAND: threshold and tie limit of keep, the same of drop; with factors then by_rows'
# `rows`; DRAW: key, limit; CLAMP: most, as fp32 bits; RANKED: key, and the address where flat index 0 would have its
# limit: an int32 for each element, to the end of the last tile.
SELECT_WORDS = tl.constexpr(6)


@triton.jit
def in_cut(bits, cut, flat, at, ROWS: tl.constexpr):
    """Whether elements are in a cut, given their magnitudes or scores as int32 bits.

    cut: pointer to threshold and tie limit, int64. flat: the tile's flat index, int64; at: positions in the tile.
    """
    threshold = tl.load(cut).to(tl.int32)
    last = tl.minimum(tl.maximum(tl.load(cut + 1) - flat, -1), ROWS * BLOCK).to(tl.int32)
    return (bits > threshold) | ((bits == threshold) & (at <= last))


@triton.jit
def is_selected(d, select, flat, at, KIND: tl.constexpr, ROWS: tl.constexpr):
    """Whether elements of a tile are selected. KIND: one that may leave elements out."""
    if KIND == BAND or KIND == BAND_BY_ROWS:
        score = bits_of(d) & 0x7FFFFFFF
        if KIND == BAND_BY_ROWS:
            score = bits_of(by_rows(tl.abs(d), select + 4, flat + at))
        keep = in_cut(score, select, flat, at, ROWS)
        drop = in_cut(score, select + 2, flat, at, ROWS)
        chosen = keep & (drop == 0)
    else:
        drawn = words(tl.load(select), flat // BLOCK, ROWS)
        if KIND == DRAW:
            limit = tl.load(select + 1).to(tl.uint32)
        else:
            limits = tl.load(select + 1).to(tl.pointer_type(tl.int32))
            limit = tl.load(limits + flat + at).to(tl.uint32, bitcast=True)
        chosen = drawn < limit
    return chosen


@triton.jit
def part(d, select, flat, at, KIND: tl.constexpr, ROWS: tl.constexpr):
    """z: the selected part of a tile of one task vector. Elements that are not finite always take part, unchanged."""
    if KIND == CLAMP:
        most = float_of(tl.load(select).to(tl.int32))
        z = tl.where(is_finite(d), tl.minimum(tl.maximum(d, -most), most), d)
    elif KIND == EVERY:
        z = d
    else:
        chosen = is_selected(d, select, flat, at, KIND, ROWS)
        z = tl.where(chosen | (is_finite(d) == 0), d, 0.0)
    return z
