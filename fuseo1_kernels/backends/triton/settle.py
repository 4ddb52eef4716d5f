"""The end of a survey: turns exact sums into energies, and energies into SCE's weights (as methods/sce.py does)."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import BLOCK, bounds_of, float_of
from .state import (
    AT_HIGH,
    AT_LOW,
    CUT,
    FAILED,
    NONFINITE,
    NONZERO,
    NOTHING,
    P_AT_HIGH,
    P_AT_LOW,
    P_FLOOR,
    P_WEIGHTS,
    R_ENERGY,
    R_NONFINITE,
    R_NONZERO,
    R_PASSES,
    R_SELECTED,
    R_THRESHOLD,
    R_TIE_LIMIT,
    R_WRITTEN,
    SELECTED,
    THRESHOLD,
    TIE_LIMIT,
)

# mergekit's rules: below this mean square all weights are equal, and no divisor is smaller.
MERGEKIT_FLOOR = tl.constexpr(1e-6)


@triton.jit
def energies_of(bins, TARGETS: tl.constexpr, SLOTS: tl.constexpr, STRIPES: tl.constexpr):
    """[SLOTS] fp64: each target's sums of integers, added from the smallest exponent up.

    bins: [STRIPES, TARGETS, 256] int64.
    """
    i = tl.arange(0, SLOTS)[:, None]
    e = tl.arange(0, BLOCK)[None, :]
    sums = tl.zeros([SLOTS, BLOCK], tl.int64)
    for stripe in range(STRIPES):
        at = (stripe * TARGETS + i) * BLOCK + e
        sums += tl.load(bins + at, mask=(i < TARGETS) & (e >= 0), other=0)
    energy = tl.zeros([SLOTS], tl.float64)
    least = tl.min(tl.where(sums != 0, e, BLOCK), axis=1)
    while tl.min(least, axis=0) < BLOCK:
        here = e == least[:, None]
        unit = ((least - 149 + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
        energy = energy + tl.sum(tl.where(here, sums, 0), axis=1).to(tl.float64) * unit
        sums = tl.where(here, 0, sums)
        least = tl.min(tl.where(sums != 0, e, BLOCK), axis=1)
    return energy


@triton.jit
def store_weights(
    energy, numel, numbers, TARGETS: tl.constexpr, SLOTS: tl.constexpr, MERGEKIT: tl.constexpr
):
    """Writes numbers[P_WEIGHTS ...]: each energy / the energies' sum, or 1 each."""
    i = tl.arange(0, SLOTS)
    all_of = tl.full((), 0.0, tl.float64)
    for target in tl.static_range(TARGETS):
        all_of = all_of + tl.sum(tl.where(i == target, energy, 0.0), axis=0)
    equal = all_of == 0.0
    if MERGEKIT:
        mean = all_of / tl.maximum(tl.cast(numel, tl.int64), 1).to(tl.float64)
        empty = tl.cast(numel, tl.int64) == 0
        equal = (equal & empty) | ((empty == 0) & (mean < tl.full((), MERGEKIT_FLOOR, tl.float64)))
    one = tl.full((), 1.0, tl.float64)
    share = energy / tl.where(all_of == 0.0, one, all_of)
    tl.store(numbers + P_WEIGHTS + i, tl.where(equal, one, share), mask=i < TARGETS)


@triton.jit(do_not_specialize=["numel"])
def settle(
    state,  # [64] int64
    bins,  # [2 (SCORED), STRIPES, TARGETS, 256] int64
    result,  # [64] int64, written
    numbers,  # [24] fp64, written
    tie_limit,  # [1] int64, written
    numel,
    SCORED: tl.constexpr,  # workspace.needs_scores
    ALL: tl.constexpr,  # select_topk is 1
    MERGEKIT: tl.constexpr,
    TARGETS: tl.constexpr,
    SLOTS: tl.constexpr,  # TARGETS, rounded up to a power of two
    STRIPES: tl.constexpr,
):
    """One program: writes the result and SCE's parameters."""
    count = tl.cast(numel, tl.int64)
    nothing = tl.full((), NOTHING, tl.int64)
    if SCORED:
        failed = tl.load(state + FAILED)
        nonzero, selected = tl.load(state + NONZERO), tl.load(state + SELECTED)
        threshold, limit = tl.load(state + THRESHOLD), tl.load(state + TIE_LIMIT)
        # The exact path: three digits, the ties if they are cut, the energies.
        passes = 1 + failed * (4 + tl.load(state + CUT))
        low, high = tl.load(state + AT_LOW), tl.load(state + AT_HIGH)
        from_bins = bins + failed * (STRIPES * TARGETS * BLOCK)
    else:
        nonzero = tl.full((), -1, tl.int64)
        selected = count if ALL else tl.full((), 0, tl.int64)
        threshold = tl.full((), 0, tl.int64) if ALL else nothing
        limit = count - 1 if ALL else tl.full((), -1, tl.int64)
        passes = (count > 0).to(tl.int64)
        low, high = bounds_of(threshold, threshold, TARGETS)
        from_bins = bins
    energy = energies_of(from_bins, TARGETS, SLOTS, STRIPES)
    energy = tl.where(selected > 0, energy, 0.0)
    tl.store(result + R_NONZERO, nonzero)
    tl.store(result + R_SELECTED, selected)
    tl.store(result + R_THRESHOLD, threshold)
    tl.store(result + R_TIE_LIMIT, limit)
    tl.store(result + R_PASSES, passes)
    tl.store(result + R_WRITTEN, tl.full((), 0, tl.int64))
    i = tl.arange(0, 32)
    counts = tl.load(state + NONFINITE + i, mask=i < TARGETS + 2, other=0)
    tl.store(result + R_NONFINITE + i, counts, mask=i < TARGETS + 2)
    slot = tl.arange(0, SLOTS)
    tl.store(result + R_ENERGY + slot, energy.to(tl.int64, bitcast=True), mask=slot < TARGETS)
    store_weights(energy, numel, numbers, TARGETS, SLOTS, MERGEKIT)
    tl.store(
        numbers + P_FLOOR, tl.full((), MERGEKIT_FLOOR if MERGEKIT else float("-inf"), tl.float64)
    )
    tl.store(numbers + P_AT_LOW, float_of(low.to(tl.int32)).to(tl.float64))
    tl.store(numbers + P_AT_HIGH, float_of(high.to(tl.int32)).to(tl.float64))
    tl.store(tie_limit, limit)


@triton.jit
def take_params(
    given,  # [TARGETS + 4] fp64, in the layout of torch_ops
    numbers,  # [24] fp64, written
    tie_limit,  # [1] int64, written
    TARGETS: tl.constexpr,
    SLOTS: tl.constexpr,  # TARGETS, rounded up to a power of two
):
    """One program: writes given parameters as fuse takes them. Without a mask every score is selected."""
    i = tl.arange(0, SLOTS)
    weights = tl.load(given + i, mask=i < TARGETS, other=0.0)
    tl.store(numbers + P_WEIGHTS + i, weights, mask=i < TARGETS)
    floor = tl.load(given + TARGETS)
    tl.store(numbers + P_FLOOR, tl.where(floor == 0.0, float("-inf"), floor))
    masked = tl.load(given + TARGETS + 1) != 0.0
    threshold = tl.where(masked, tl.load(given + TARGETS + 2), 0.0).to(tl.int64)
    low, high = bounds_of(threshold, threshold, TARGETS)
    tl.store(numbers + P_AT_LOW, float_of(low.to(tl.int32)).to(tl.float64))
    tl.store(numbers + P_AT_HIGH, float_of(high.to(tl.int32)).to(tl.float64))
    everywhere = tl.full((), 1 << 62, tl.int64)
    limit = tl.load(given + TARGETS + 3).to(tl.int64)
    tl.store(tie_limit, tl.where(masked, limit, everywhere))
