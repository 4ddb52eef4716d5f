"""The sample that brackets a survey's threshold: csrc/cpu/survey/sampling.h in Triton, over a grid.

No kernel waits for another: every program of a launch reads the counts of the launch before, and computes the same
next step from them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import INF, bounds_of, first_reaching, score_bits
from .state import HIGH, LEAST, LOW, PREFIX, RANK, RUNS

RUN = tl.constexpr(16)  # neighbours sampled together: a sector of bf16
RUNS_AT_ONCE = tl.constexpr(128)
DEVIATIONS = tl.constexpr(4.0)  # standard deviations of the bracket to each side

# Scores are 31 bits. Their digits, from the top: 11, 11, 9 bits.
DIGITS = tl.constexpr(2048)


@triton.jit
def digit_of(bits, DIGIT: tl.constexpr):
    """(digit, above): digit 0, 1 or 2 of scores, and the bits above it."""
    if DIGIT == 0:
        digit, above = bits >> 20, bits >> 31
    elif DIGIT == 1:
        digit, above = (bits >> 9) & 2047, bits >> 20
    else:
        digit, above = bits & 511, bits >> 9
    return digit, above


@triton.jit
def reach_from_top(histogram, wanted):
    """(digit, rest): the `wanted`-th element (from 1) from the top has this digit, and is the rest-th that has it.

    histogram: [2048] int64.
    """
    counts = tl.load(histogram + (DIGITS - 1) - tl.arange(0, DIGITS))
    reached = tl.cumsum(counts, axis=0)
    short = reached < wanted
    digit = DIGITS - 1 - tl.sum(short.to(tl.int32), axis=0)
    return digit, wanted - tl.max(tl.where(short, reached, 0), axis=0)


@triton.jit
def add_histogram(counts, histogram):
    """Adds [2048] int32 counts to a histogram in memory: [2048] int64."""
    to = histogram + tl.arange(0, DIGITS)
    tl.atomic_add(to, counts.to(tl.int64), mask=counts != 0, sem="relaxed")


@triton.jit
def present_in(histogram):
    return tl.sum(tl.load(histogram + tl.arange(0, DIGITS)), axis=0)


@triton.jit
def fp64_of(bits):
    """int64 bits as fp64: a Python float loses precision as a kernel argument."""
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True)


@triton.jit(do_not_specialize=["numel", "runs"])
def sample_scores(
    inputs,  # tuple of TARGETS + 1 pointers: [numel], base first
    sample,  # [runs, 16] int32: scores' bits
    histogram,  # [2048] int64: first digits of the scores that are not 0
    numel,
    runs,
    TARGETS: tl.constexpr,
    OF: tl.constexpr,
):
    """A program takes 128 runs of 16 elements; a hash places each within its even share of the tensor."""
    run = tl.program_id(0) * RUNS_AT_ONCE + tl.arange(0, RUNS_AT_ONCE)
    share = tl.cast(numel, tl.int64) // runs
    jitter = ((run * -1640531535) >> 15) & 0x1FFFF
    start = run * share + jitter % (share - RUN + 1)
    at = (start // RUN * RUN)[:, None] + tl.arange(0, RUN)[None, :]
    known = (run < runs)[:, None] & (at >= 0)
    bits = score_bits(inputs, 0, tl.where(known, at, numel), numel, TARGETS, OF)
    tl.store(sample + run[:, None] * RUN + tl.arange(0, RUN)[None, :], bits, mask=known)
    bits = tl.reshape(bits, [RUNS_AT_ONCE * RUN])
    digit, _ = digit_of(bits, 0)
    add_histogram(tl.histogram(digit, DIGITS, mask=bits != 0), histogram)


@triton.jit(do_not_specialize=["runs", "topk"])
def measure_runs(
    sample,  # [runs, 16] int32
    histogram,  # [2048] int64, of sample_scores
    state,  # [64] int64
    runs,
    topk,  # fp64 bits of select_topk
):
    """A program takes 128 runs, and counts those elements of each that lie above the estimated threshold."""
    present = present_in(histogram)
    wanted = (fp64_of(topk) * present.to(tl.float64)).to(tl.int64)
    digit, _ = reach_from_top(histogram, tl.minimum(wanted, present - 1) + 1)
    run = tl.program_id(0) * RUNS_AT_ONCE + tl.arange(0, RUNS_AT_ONCE)[:, None]
    scores = tl.load(sample + run * RUN + tl.arange(0, RUN)[None, :], mask=run < runs, other=0)
    a = tl.sum((scores > (digit << 20)).to(tl.int32), axis=1)
    p = tl.sum((scores != 0).to(tl.int32), axis=1)
    tl.atomic_add(state + RUNS, tl.sum(a * a, axis=0).to(tl.int64), sem="relaxed")
    tl.atomic_add(state + RUNS + 1, tl.sum(a * p, axis=0).to(tl.int64), sem="relaxed")
    tl.atomic_add(state + RUNS + 2, tl.sum(p * p, axis=0).to(tl.int64), sem="relaxed")
    tl.atomic_add(state + RUNS + 3, tl.sum(a, axis=0).to(tl.int64), sem="relaxed")


@triton.jit
def margin_of(state, present, share):
    """How many ranks of the sample the bracket reaches to each side of the threshold's rank, in fp64.

    present: how many sampled scores are not 0, in fp64.

    A run's elements are neighbours, often of one scale. So the random draw is of runs, and the variance is that of
    each run's count above the level, beyond its expected share.
    """
    aa = tl.load(state + RUNS).to(tl.float64)
    ap = tl.load(state + RUNS + 1).to(tl.float64)
    pp = tl.load(state + RUNS + 2).to(tl.float64)
    a = tl.load(state + RUNS + 3).to(tl.float64)
    part = a / tl.maximum(present, 1.0)
    varies = aa - 2.0 * part * ap + part * part * pp
    drawn = present * share * (1.0 - share)
    return 16.0 + DEVIATIONS * tl.sqrt(tl.maximum(tl.maximum(varies, drawn), 0.0))


@triton.jit(do_not_specialize=["runs", "topk"])
def refine_bracket(
    sample,  # [runs, 16] int32
    histograms,  # [3, 2048] int64: of sample_scores; second digits at the bracket's upper side, at its lower side
    state,
    runs,
    topk,
):
    """A program takes 128 runs, and counts the second digits of the scores that have a side's first digit."""
    share = fp64_of(topk)
    present = present_in(histograms).to(tl.float64)
    rank = share * present
    margin = margin_of(state, present, share)
    run = tl.program_id(0) * RUNS_AT_ONCE + tl.arange(0, RUNS_AT_ONCE)[:, None]
    at = run * RUN + tl.arange(0, RUN)[None, :]
    scores = tl.reshape(tl.load(sample + at, mask=run < runs, other=0), [RUNS_AT_ONCE * RUN])
    digit, above = digit_of(scores, 1)
    for side in tl.static_range(2):
        place = rank + (2 * side - 1) * margin
        is_open = (place < 0) | (place >= present)
        wanted = tl.where(is_open, 1, place.to(tl.int64) + 1)
        prefix, rest = reach_from_top(histograms, wanted)
        prefix = tl.where(is_open, -1, prefix)
        if tl.program_id(0) == 0:
            tl.store(state + PREFIX + side, prefix.to(tl.int64))
            tl.store(state + RANK + side, rest)
        belongs = (scores != 0) & (above == prefix)
        to = histograms + (1 + side) * DIGITS
        add_histogram(tl.histogram(digit, DIGITS, mask=belongs), to)


@triton.jit(do_not_specialize=["runs"])
def end_bracket(
    histograms,  # [3, 2048] int64
    state,
    runs,  # 0: no sample; every score is inside the bracket
    TARGETS: tl.constexpr,  # the divisor of scores
):
    """One program: turns the sides' digits into the bounds that the scan compares with."""
    sampled = tl.cast(runs, tl.int64) > 0
    upper = tl.load(state + PREFIX)
    digit, _ = reach_from_top(histograms + DIGITS, tl.load(state + RANK))
    edge = (upper << 20) | (digit.to(tl.int64) << 9) | 511
    high = tl.where(sampled & (upper >= 0), edge, INF)
    lower = tl.load(state + PREFIX + 1)
    digit, _ = reach_from_top(histograms + 2 * DIGITS, tl.load(state + RANK + 1))
    edge = (lower << 20) | (digit.to(tl.int64) << 9)
    low = tl.where(sampled & (lower >= 0), tl.maximum(edge, 1), 1)
    low, high = bounds_of(low, high, TARGETS)
    tl.store(state + LOW, low)
    tl.store(state + HIGH, high)
    tl.store(state + LEAST, first_reaching(tl.full((), 1, tl.int64), TARGETS))
