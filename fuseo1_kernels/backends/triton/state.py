"""Places of the numbers that a survey's kernels pass to each other in its workspace."""

from __future__ import annotations

from typing import Any

import triton.language as tl

from .. import contract

# --- state: [64] int64 ---
RARE = tl.constexpr(0)  # tiles left to the careful kernel
FAILED = tl.constexpr(1)  # 1: the candidates do not suffice, the exact path follows
NONZERO = tl.constexpr(2)
SELECTED = tl.constexpr(3)  # k
CUT = tl.constexpr(4)  # 1: not all ties at the threshold are selected
THRESHOLD = tl.constexpr(5)
TIE_LIMIT = tl.constexpr(6)
# Before digit 0, 1, 2 and after the last: the digits so far, and how many of the scores that have them are selected.
FOUND = tl.constexpr(8)
WANTED = tl.constexpr(12)
# Bounds of scores before their division by N, as fp32 bits (arithmetic.bounds_of): those in the bracket are
# [LOW, HIGH], those that are not 0 start at LEAST, those at the threshold are [AT_LOW, AT_HIGH].
LOW = tl.constexpr(16)
HIGH = tl.constexpr(17)
LEAST = tl.constexpr(18)
AT_LOW = tl.constexpr(19)
AT_HIGH = tl.constexpr(20)
# The sample: sums over its runs, where a run has `a` scores above the level and `p` that are not 0.
RUNS = tl.constexpr(24)  # aa, ap, pp, a
PREFIX = tl.constexpr(30)  # first digit of the bracket's upper and of its lower side; -1: open
RANK = tl.constexpr(32)  # each side's rank among the scores with that digit, from the highest
NONFINITE = tl.constexpr(40)  # base, targets 1..N, overflows
STATE = 64

# --- stripes: [stripes, 2] int64. Tiles take turns adding to them, so that no address is contended ---
S_COUNTS = tl.constexpr(0)  # scores that are not 0; from bit 32 on: those above the bracket
S_FOUND = tl.constexpr(1)  # candidates, including those for which there was no place
STRIPE = tl.constexpr(2)

# --- result: [64] int64 ---
R_NONZERO = tl.constexpr(0)
R_SELECTED = tl.constexpr(1)
R_THRESHOLD = tl.constexpr(2)
R_TIE_LIMIT = tl.constexpr(3)
R_PASSES = tl.constexpr(4)
R_WRITTEN = tl.constexpr(5)  # outputs that are infinite or NaN, added by fuse
R_NONFINITE = tl.constexpr(8)  # [18]
R_ENERGY = tl.constexpr(32)  # [16] fp64 bits
RESULT = 64

# --- params: [24] fp64, the parameters of fuse; the tie limit is a separate int64 ---
P_WEIGHTS = tl.constexpr(0)  # [16]
P_FLOOR = tl.constexpr(16)  # -inf: no floor
P_AT_LOW = tl.constexpr(17)
P_AT_HIGH = tl.constexpr(18)
PARAMS = 24
#: Bytes of parameters in torch_ops' layout for 16 targets; those above need fewer.
PARAMS_BYTES = 256

MOST_TARGETS = 16
NOTHING = tl.constexpr(contract.NOTHING)  # a threshold above every score


def place(constant: Any) -> int:
    """A Triton constant as a number on the host."""
    return int(constant.value)
