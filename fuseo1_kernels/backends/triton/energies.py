"""The energies that the scan could not add: those of the selected candidates or, on the exact path, all."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import (
    BLOCK,
    RINT_MAGIC_BITS,
    add_energies,
    block_peaks,
    is_finite,
    positions,
    quanta,
    spread,
    squarable,
    squares,
    task_vectors,
    total,
)
from .scan import load_bound
from .state import AT_HIGH, AT_LOW, FAILED, SELECTED, TIE_LIMIT
from .threshold import RARE_ROWS, candidate_tiles, load_candidates


@triton.jit
def selected_by_score(x, index, low, high, limit):
    """Whether elements are selected, given their scores before the division and their flat indices."""
    return (x > high) | ((x >= low) & (index <= limit))


@triton.jit
def add_by_exponent(amounts, exponents, to):
    """Adds int64 amounts to to[exponent], with one atomic per exponent that occurs; exponents < 0 do not count."""
    most = tl.max(exponents, axis=0)
    while most >= 0:
        here = exponents == most
        tl.atomic_add(to + most, tl.sum(tl.where(here, amounts, 0), axis=0), sem="relaxed")
        exponents = tl.where(here, -1, exponents)
        most = tl.max(exponents, axis=0)


@triton.jit(do_not_specialize=["numel", "capacity"])
def add_selected(
    inputs,  # tuple of TARGETS + 1 pointers: [numel], base first
    stripes,  # [STRIPES, 2] int64
    state,  # [64] int64
    bins,  # [2, STRIPES, TARGETS, 256] int64: of scan and candidates; of the exact path
    exponents,  # [TARGETS, blocks] uint8
    records,  # [STRIPES, capacity] int64
    numel,
    capacity,
    TARGETS: tl.constexpr,
    STRIPES: tl.constexpr,
    TILE: tl.constexpr,  # elements of a tile of the scan
):
    """A program takes every n-th tile, of candidates, whose elements it reads again, or of all elements."""
    selected, failed = tl.load(state + SELECTED), tl.load(state + FAILED)
    low, high = load_bound(state, AT_LOW), load_bound(state, AT_HIGH)
    limit = tl.load(state + TIE_LIMIT)
    stripe = tl.program_id(0) % STRIPES
    blocks = tl.cdiv(tl.cast(numel, tl.int64), BLOCK)
    of_candidates = candidate_tiles(stripes, capacity, STRIPES)
    last = tl.where((selected > 0) & (failed == 0), of_candidates, 0)
    for n in range(tl.program_id(0), last, tl.num_programs(0)):
        x, index, known = load_candidates(n, stripes, records, capacity, STRIPES, TILE)
        chosen = known & selected_by_score(x, index, low, high, limit)
        # Elements that are not chosen get an index beyond the end, and load as zeros.
        at = tl.where(chosen, index, numel)
        _, d = task_vectors(inputs, 0, at, numel, False, TARGETS)
        q = squares(squarable(d, total(d, TARGETS), TARGETS), TARGETS)
        for i in tl.static_range(TARGETS):
            exponent = tl.load(exponents + i * blocks + index // BLOCK, mask=chosen, other=22)
            exponent = exponent.to(tl.int32)
            amounts = (quanta(q[i], exponent) - RINT_MAGIC_BITS).to(tl.int64)
            to = bins + (stripe * TARGETS + i) * BLOCK
            add_by_exponent(amounts, tl.where(chosen, exponent, -1), to)
    exact = bins + STRIPES * TARGETS * BLOCK
    of_elements = tl.cdiv(tl.cast(numel, tl.int64), RARE_ROWS * BLOCK).to(tl.int32)
    at = positions(RARE_ROWS)
    last = tl.where(failed != 0, of_elements, 0)
    for n in range(tl.program_id(0), last, tl.num_programs(0)):
        start = tl.cast(n, tl.int64) * (RARE_ROWS * BLOCK)
        left = tl.minimum(numel - start, RARE_ROWS * BLOCK).to(tl.int32)
        _, d = task_vectors(inputs, start, at, left, False, TARGETS)
        s = total(d, TARGETS)
        x = tl.where(is_finite(s), spread(d, s, TARGETS), 0.0)
        q = squares(squarable(d, s, TARGETS), TARGETS)
        peaks = block_peaks(q, TARGETS)
        chosen = selected_by_score(x, start + at, low, high, limit)
        chosen_q = ()
        for i in tl.static_range(TARGETS):
            chosen_q = chosen_q + (tl.where(chosen, q[i], 0.0),)
        add_energies(chosen_q, peaks, exact, stripe, TARGETS)
