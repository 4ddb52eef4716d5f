"""Philox4x32-7 in Triton: the random words of csrc/include/fuseo1/select.h.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import BLOCK

COUNTERS = tl.constexpr(64)  # of a block: each gives four words
ROUNDS = tl.constexpr(7)
FACTOR_0 = tl.constexpr(0xD2511F53)
FACTOR_1 = tl.constexpr(0xCD9E8D57)
STEP_0 = tl.constexpr(0x9E3779B9)
STEP_1 = tl.constexpr(0xBB67AE85)


@triton.jit
def words(key, first, ROWS: tl.constexpr):
    """[ROWS, 256] uint32: word(key, f) for ROWS blocks from block number `first` on; key and first are int64."""
    block = first + tl.arange(0, ROWS).to(tl.int64)
    counter = block[:, None] * COUNTERS + tl.arange(0, COUNTERS)[None, :]
    c0, c1 = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    c2 = tl.zeros([ROWS, COUNTERS], tl.uint32)
    c3 = c2
    k0, k1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    for _ in tl.static_range(ROUNDS):
        high_0, high_1 = tl.umulhi(c0, FACTOR_0), tl.umulhi(c2, FACTOR_1)
        low_0, low_1 = c0 * FACTOR_0, c2 * FACTOR_1
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = k0 + STEP_0, k1 + STEP_1
    # [ROWS, 64, 2, 2]: a word's number is twice its last index plus the one before.
    made = tl.join(tl.join(c0, c1), tl.join(c2, c3))
    return tl.reshape(tl.permute(made, (0, 3, 2, 1)), [ROWS, BLOCK])
