"""The threshold search: from the candidates or, on the exact path, the whole tensor to the threshold and its ties."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import BLOCK, bits_of_score, bounds_of, float_of, positions, score_bits
from .sampling import DIGITS, add_histogram, digit_of, fp64_of, reach_from_top
from .state import (
    AT_HIGH,
    AT_LOW,
    CUT,
    FAILED,
    FOUND,
    NONZERO,
    NOTHING,
    S_COUNTS,
    S_FOUND,
    SELECTED,
    STRIPE,
    THRESHOLD,
    TIE_LIMIT,
    WANTED,
)

RARE_ROWS = tl.constexpr(8)  # blocks of a tile where speed does not matter
CANDIDATES = tl.constexpr(2048)  # candidates that a program takes at once
STRETCH = tl.constexpr(4096)  # ties are counted by stretches of so many elements
STRETCHES = tl.constexpr(1024)  # stretches that are added up at once


@triton.jit
def candidate_tiles(stripes, capacity, STRIPES: tl.constexpr):
    """How many tiles of candidates there are; a stripe's capacity is a multiple of one."""
    filled = tl.load(stripes + tl.arange(0, STRIPES) * STRIPE + S_FOUND)
    most = tl.minimum(tl.max(filled, axis=0), capacity)
    return (STRIPES * tl.cdiv(most, CANDIDATES)).to(tl.int32)


@triton.jit
def load_candidates(n, stripes, records, capacity, STRIPES: tl.constexpr, TILE: tl.constexpr):
    """(x, index, known) of tile n of the candidates: first every stripe's first tile, then every second one, ...

    x: the score before its division; index: in the tensor, whose scan had tiles of TILE elements.
    """
    stripe = n % STRIPES
    filled = tl.minimum(tl.load(stripes + stripe * STRIPE + S_FOUND), capacity)
    at = (n // STRIPES) * CANDIDATES + tl.arange(0, CANDIDATES)
    known = at < filled
    record = tl.load(records + stripe * tl.cast(capacity, tl.int64) + at, mask=known, other=0)
    place = record & 0xFFFFFFFF
    index = (place // TILE * STRIPES + stripe) * TILE + place % TILE
    return float_of((record >> 32).to(tl.int32)), index, known


@triton.jit
def settle_count(stripes, state, topk, capacity, STRIPES: tl.constexpr):
    """(selected, wanted, failed): k; how many of the candidates are selected, or of all elements if these fail."""
    each = stripes + tl.arange(0, STRIPES) * STRIPE
    counts = tl.load(each + S_COUNTS)
    nonzero, certain = tl.sum(counts & 0xFFFFFFFF, axis=0), tl.sum(counts >> 32, axis=0)
    found = tl.load(each + S_FOUND)
    selected = (fp64_of(topk) * nonzero.to(tl.float64)).to(tl.int64)
    wanted = selected - certain
    enough = (wanted >= 1) & (wanted <= tl.sum(found, axis=0)) & (tl.max(found, axis=0) <= capacity)
    failed = ((selected > 0) & (enough == 0)).to(tl.int64)
    if tl.program_id(0) == 0:
        tl.store(state + NONZERO, nonzero)
        tl.store(state + SELECTED, selected)
        tl.store(state + FAILED, failed)
    return selected, tl.where(failed != 0, selected, wanted), failed


@triton.jit
def digit_before(histograms, state, DIGIT: tl.constexpr):
    """(found, rest): the digits up to DIGIT - 1; of the elements that have them, the rest-th is the last selected."""
    digit, rest = reach_from_top(
        histograms + (DIGIT - 1) * DIGITS, tl.load(state + WANTED + DIGIT - 1)
    )
    width: tl.constexpr = 9 if DIGIT == 3 else 11
    return (tl.load(state + FOUND + DIGIT - 1) << width) | digit, rest


@triton.jit(do_not_specialize=["numel", "capacity", "topk"])
def count_digit(
    inputs,  # tuple of TARGETS + 1 pointers: [numel], base first
    stripes,  # [STRIPES, 2] int64
    state,  # [64] int64
    histograms,  # [3, 2048] int64: of the three digits
    records,  # [STRIPES, capacity] int64
    numel,
    capacity,
    topk,  # fp64 bits of select_topk
    DIGIT: tl.constexpr,
    TARGETS: tl.constexpr,
    STRIPES: tl.constexpr,
    TILE: tl.constexpr,  # elements of a tile of the scan
    OF: tl.constexpr,
):
    """Counts DIGIT of the scores that have the digits so far. A program takes every n-th tile."""
    if DIGIT == 0:
        selected, wanted, failed = settle_count(stripes, state, topk, capacity, STRIPES)
        found = tl.full((), 0, tl.int64)
    else:
        selected, failed = tl.load(state + SELECTED), tl.load(state + FAILED)
        found, wanted = digit_before(histograms, state, DIGIT)
    if tl.program_id(0) == 0:
        tl.store(state + FOUND + DIGIT, found)
        tl.store(state + WANTED + DIGIT, wanted)
    counts = tl.zeros([DIGITS], tl.int32)
    of_candidates = candidate_tiles(stripes, capacity, STRIPES)
    of_elements = tl.cdiv(tl.cast(numel, tl.int64), RARE_ROWS * BLOCK).to(tl.int32)
    use_candidates = (selected > 0) & (failed == 0)
    last = tl.where(use_candidates, of_candidates, 0)
    for n in range(tl.program_id(0), last, tl.num_programs(0)):
        x, _, known = load_candidates(n, stripes, records, capacity, STRIPES, TILE)
        score = bits_of_score(x, TARGETS, OF)
        digit, above = digit_of(score, DIGIT)
        counts += tl.histogram(digit, DIGITS, mask=known & (above == found))
    last = tl.where(failed != 0, of_elements, 0)
    at = positions(RARE_ROWS)
    for n in range(tl.program_id(0), last, tl.num_programs(0)):
        start = tl.cast(n, tl.int64) * (RARE_ROWS * BLOCK)
        left = tl.minimum(numel - start, RARE_ROWS * BLOCK).to(tl.int32)
        score = score_bits(inputs, start, at, left, TARGETS, OF)
        score = tl.reshape(score, [RARE_ROWS * BLOCK])
        digit, above = digit_of(score, DIGIT)
        # Zeros are never selected, and elements beyond the end are zeros.
        counts += tl.histogram(digit, DIGITS, mask=(score != 0) & (above == found))
    add_histogram(counts, histograms + DIGIT * DIGITS)


@triton.jit(do_not_specialize=["numel", "capacity"])
def count_ties(
    inputs,
    stripes,
    state,
    histograms,
    records,
    ties,  # [stretches] int32: elements at the threshold in each
    numel,
    capacity,
    TARGETS: tl.constexpr,
    STRIPES: tl.constexpr,
    TILE: tl.constexpr,  # elements of a tile of the scan
    OF: tl.constexpr,
):
    """Counts ties at the threshold, unless all of them are selected. A program takes every n-th tile."""
    selected, failed = tl.load(state + SELECTED), tl.load(state + FAILED)
    threshold, wanted = digit_before(histograms, state, 3)
    tied = tl.load(histograms + 2 * DIGITS + (threshold & 511))
    cut = (selected > 0) & (wanted < tied)
    if tl.program_id(0) == 0:
        tl.store(state + THRESHOLD, tl.where(selected > 0, threshold, NOTHING))
        tl.store(state + WANTED + 3, wanted)
        tl.store(state + CUT, cut.to(tl.int64))
    of_candidates = candidate_tiles(stripes, capacity, STRIPES)
    of_elements = tl.cdiv(tl.cast(numel, tl.int64), RARE_ROWS * BLOCK).to(tl.int32)
    last = tl.where(cut & (failed == 0), of_candidates, 0)
    for n in range(tl.program_id(0), last, tl.num_programs(0)):
        x, index, known = load_candidates(n, stripes, records, capacity, STRIPES, TILE)
        tie = known & (bits_of_score(x, TARGETS, OF) == threshold)
        tl.atomic_add(ties + index // STRETCH, 1, mask=tie, sem="relaxed")
    last = tl.where(cut & (failed != 0), of_elements, 0)
    at = positions(RARE_ROWS)
    for n in range(tl.program_id(0), last, tl.num_programs(0)):
        start = tl.cast(n, tl.int64) * (RARE_ROWS * BLOCK)
        left = tl.minimum(numel - start, RARE_ROWS * BLOCK).to(tl.int32)
        tie = score_bits(inputs, start, at, left, TARGETS, OF) == threshold
        number = tl.sum(tl.sum(tie.to(tl.int32), axis=1), axis=0)
        tl.atomic_add(ties + start // STRETCH, number, mask=number != 0, sem="relaxed")


@triton.jit(do_not_specialize=["numel", "stretches"])
def find_cut(
    inputs,
    state,
    ties,  # [stretches] int32
    numel,
    stretches,
    TARGETS: tl.constexpr,
    OF: tl.constexpr,
):
    """One program: finds the last selected tie, and the bounds of scores at the threshold."""
    threshold = tl.load(state + THRESHOLD)
    limit = tl.where(threshold == NOTHING, -1, tl.cast(numel, tl.int64) - 1)
    if tl.load(state + CUT) != 0:
        rest = tl.load(state + WANTED + 3)
        at = tl.cast(tl.arange(0, STRETCHES), tl.int64)
        counts = tl.load(ties + at, mask=at < stretches, other=0).to(tl.int64)
        number = tl.sum(counts, axis=0)
        while number < rest:
            rest -= number
            at += STRETCHES
            counts = tl.load(ties + at, mask=at < stretches, other=0).to(tl.int64)
            number = tl.sum(counts, axis=0)
        reached = tl.cumsum(counts, axis=0)
        short = reached < rest
        start = (tl.min(at, axis=0) + tl.sum(short.to(tl.int64), axis=0)) * STRETCH
        rest -= tl.max(tl.where(short, reached, 0), axis=0)
        left = tl.minimum(numel - start, STRETCH).to(tl.int32)
        inside = tl.arange(0, STRETCH)
        tie = score_bits(inputs, start, inside, left, TARGETS, OF) == threshold
        limit = start + tl.sum((tl.cumsum(tie.to(tl.int32), axis=0) < rest).to(tl.int64), axis=0)
    tl.store(state + TIE_LIMIT, limit)
    low, high = bounds_of(threshold, threshold, TARGETS)
    tl.store(state + AT_LOW, low)
    tl.store(state + AT_HIGH, high)
