"""The scan, a survey's one read: adds the energies above the bracket and keeps the candidates inside it."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import (
    BLOCK,
    INF,
    add_energies,
    bits_of,
    block_peaks,
    exponent_of,
    float_of,
    is_finite,
    load_wide,
    positions,
    score_before,
    squarable,
    squares,
    task_vectors,
    total,
)
from .state import (
    HIGH,
    LEAST,
    LOW,
    NONFINITE,
    RARE,
    S_COUNTS,
    S_FOUND,
    STRIPE,
)


@triton.jit
def load_bound(state, place):
    """A bound, which `state` has as fp32 bits."""
    return float_of(tl.load(state + place).to(tl.int32))


@triton.jit
def pick(x, column, GROUPS: tl.constexpr):
    """x[g, column[g]] of x: [GROUPS, 8]; each bit of the column halves x."""
    for bit in tl.static_range(3):
        even, odd = tl.split(tl.reshape(x, [GROUPS, 4 >> bit, 2]))
        x = tl.where(((column >> bit) & 1)[:, None] != 0, odd, even)
    return tl.reshape(x, [GROUPS])


@triton.jit
def keep_candidates(
    x,
    inside,
    found,
    tile,
    stripes,
    records,
    capacity,
    STRIPES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Appends a tile's `found` candidates to its stripe of `records`: [STRIPES, capacity] int64.

    A record has x (a score before its division) in the upper 32 bits, and its place in the stripe's tiles in the lower
    32. Candidates are few, so each round takes the last one left of each group of eight neighbours, which a lane holds.
    """
    GROUPS: tl.constexpr = ROWS * BLOCK // 8
    stripe = tile % STRIPES
    counter = stripes + stripe * STRIPE + S_FOUND
    places = (tile // STRIPES) * (ROWS * BLOCK) + tl.arange(0, GROUPS) * 8
    x = tl.reshape(x, [GROUPS, 8])
    inside = tl.reshape(tl.where(inside, 1, 0), [GROUPS, 8])
    rest = tl.sum(inside << tl.arange(0, 8)[None, :], axis=1)  # a bit each
    while found > 0:
        column = (bits_of(rest.to(tl.float32)) >> 23) - 127  # the highest bit
        has = rest != 0
        number = tl.sum(has.to(tl.int32), axis=0)
        first = tl.atomic_add(counter, number.to(tl.int64), sem="relaxed")
        rank = tl.cumsum(has.to(tl.int32), axis=0) - 1
        room = tl.minimum(tl.maximum(capacity - first, 0), number).to(tl.int32)
        record = (bits_of(pick(x, column, GROUPS)).to(tl.int64) << 32) | (places + column)
        to = records + stripe.to(tl.int64) * capacity + first
        tl.store(to + rank, record, mask=has & (rank < room))
        rest = tl.where(has, rest - (1 << (column & 7)), 0)
        found -= number


@triton.jit
def take_tile(
    q,
    x,
    tile,
    numel,
    state,
    stripes,
    bins,
    exponents,
    records,
    capacity,
    SCORED: tl.constexpr,
    TARGETS: tl.constexpr,
    STRIPES: tl.constexpr,
    ROWS: tl.constexpr,
    OF: tl.constexpr,
):
    """Scans a tile whose squares are finite. Magnitudes (OF >= 0) need no energies."""
    stripe = tile % STRIPES
    peaks = block_peaks(q, TARGETS)
    if SCORED:
        above = x > load_bound(state, HIGH)
        inside = (x >= load_bound(state, LOW)) & (above == 0)
        # Three counts in one sum: not 0, above, inside; each up to 256 in a row and 4096 in a tile.
        counts = tl.where(inside, 1 + (1 << 20), tl.where(x >= load_bound(state, LEAST), 1, 0))
        in_row = tl.sum(tl.where(above, 1 + (1 << 10), counts), axis=1).to(tl.int64)
        spaced = (in_row & 1023) | ((in_row & (1023 << 10)) << 22) | ((in_row >> 20) << 16)
        of_tile = tl.sum(spaced, axis=0)
        found = ((of_tile >> 16) & 0xFFFF).to(tl.int32)
        both = (of_tile & 0xFFFF) | ((of_tile >> 32) << 32)
        tl.atomic_add(stripes + stripe * STRIPE + S_COUNTS, both, sem="relaxed")
        keep_candidates(x, inside, found, tile, stripes, records, capacity, STRIPES, ROWS)
        if OF < 0:
            # Candidates are quantized later, and then need their block's exponents.
            blocks = tl.cdiv(numel, BLOCK)
            block = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
            certain_q = ()
            for i in tl.static_range(TARGETS):
                to = exponents + i * tl.cast(blocks, tl.int64) + block
                tl.store(to, exponent_of(peaks[i]).to(tl.uint8), mask=block < blocks)
                certain_q = certain_q + (tl.where(above, q[i], 0.0),)
            add_energies(certain_q, peaks, bins, stripe, TARGETS)
    else:
        add_energies(q, peaks, bins, stripe, TARGETS)


@triton.jit(do_not_specialize=["numel", "capacity"])
def scan_tiles(
    inputs,  # tuple of TARGETS + 1 pointers: [numel], base first; bf16 as int16; then by_rows' rows, or none
    state,  # [64] int64
    stripes,  # [STRIPES, 2] int64
    bins,  # [STRIPES, TARGETS, 256] int64
    rare_tiles,  # [tiles] int32
    exponents,  # [TARGETS, blocks] uint8; only if SCORED
    records,  # [STRIPES, capacity] int64: candidates; only if SCORED
    numel,
    capacity,
    SCORED: tl.constexpr,
    TARGETS: tl.constexpr,
    STRIPES: tl.constexpr,
    ROWS: tl.constexpr,
    OF: tl.constexpr,  # the target whose |d| are the scores; -1: scores are variances
):
    """A program takes one whole tile. Tiles with infinite squares or NaN are left to scan_carefully."""
    tile = tl.program_id(0)
    start = tile.to(tl.int64) * (ROWS * BLOCK)
    at = positions(ROWS)
    _, d = task_vectors(inputs, start, at, 0, True, TARGETS)
    q = squares(d, TARGETS)
    # NaN and infinity have the largest bits; if no square is one of them, every sum of d is finite.
    peaks = block_peaks(q, TARGETS)
    worst = peaks[0]
    for i in tl.static_range(1, TARGETS):
        worst = tl.maximum(worst, peaks[i])
    if tl.max(worst, axis=0) >= INF:
        tl.store(rare_tiles + tl.atomic_add(state + RARE, 1, sem="relaxed"), tile)
    else:
        x = q[0]
        if SCORED:
            x = score_before(d, total(d, TARGETS), inputs, start + at, TARGETS, OF)
        take_tile(
            q,
            x,
            tile,
            numel,
            state,
            stripes,
            bins,
            exponents,
            records,
            capacity,
            SCORED,
            TARGETS,
            STRIPES,
            ROWS,
            OF,
        )


@triton.jit
def count_nonfinite(inputs, start, at, left, s, state, TARGETS: tl.constexpr):
    """Counts the elements whose s is not finite: by input that is not finite, and overflows of finite inputs."""
    out = (is_finite(s) == 0) & (at < left)
    overflow = out
    for i in tl.static_range(TARGETS + 1):
        bad = out & (is_finite(load_wide(inputs[i], start, at, left, False)) == 0)
        overflow = overflow & (bad == 0)
        number = tl.sum(tl.sum(bad.to(tl.int32), axis=1), axis=0)
        tl.atomic_add(state + NONFINITE + i, number.to(tl.int64), mask=number != 0, sem="relaxed")
    number = tl.sum(tl.sum(overflow.to(tl.int32), axis=1), axis=0)
    to = state + NONFINITE + TARGETS + 1
    tl.atomic_add(to, number.to(tl.int64), mask=number != 0, sem="relaxed")


@triton.jit(do_not_specialize=["numel", "capacity"])
def scan_carefully(
    inputs,
    state,
    stripes,
    bins,
    rare_tiles,
    exponents,
    records,
    numel,
    capacity,
    SCORED: tl.constexpr,
    TARGETS: tl.constexpr,
    STRIPES: tl.constexpr,
    ROWS: tl.constexpr,
    OF: tl.constexpr,
):
    """As scan_tiles, for the tiles that it left and a partial last tile; a program takes every n-th of them."""
    whole = (tl.cast(numel, tl.int64) // (ROWS * BLOCK)).to(tl.int32)
    rare = tl.load(state + RARE).to(tl.int32)
    tail = (tl.cast(numel, tl.int64) % (ROWS * BLOCK) != 0).to(tl.int32)
    at = positions(ROWS)
    for n in range(tl.program_id(0), rare + tail, tl.num_programs(0)):
        tile = tl.load(rare_tiles + n, mask=n < rare, other=0)
        tile = tl.where(n < rare, tile, whole)
        start = tile.to(tl.int64) * (ROWS * BLOCK)
        left = tl.minimum(numel - start, ROWS * BLOCK).to(tl.int32)
        _, d = task_vectors(inputs, start, at, left, False, TARGETS)
        s = total(d, TARGETS)
        count_nonfinite(inputs, start, at, left, s, state, TARGETS)
        q = squares(squarable(d, s, TARGETS), TARGETS)
        x = q[0]
        if SCORED:
            x = score_before(d, s, inputs, start + at, TARGETS, OF)
            x = tl.where(is_finite(s), x, 0.0)
        take_tile(
            q,
            x,
            tile,
            numel,
            state,
            stripes,
            bins,
            exponents,
            records,
            capacity,
            SCORED,
            TARGETS,
            STRIPES,
            ROWS,
            OF,
        )
