"""Philox4x32-7 in torch: the random words of csrc/include/fuseo1/select.h.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_ROUNDS = 7
_FACTORS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_BLOCK = 256
_COUNTERS = _BLOCK // 4  # of a block: each counter gives four words


def philox(counter: Sequence[torch.Tensor], key: int) -> list[torch.Tensor]:
    """The four random words of each counter. `counter`: its four words, int64 tensors of one shape, below 2^32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _WORD, key >> 32
    for _ in range(_ROUNDS):
        p0, p1 = _FACTORS[0] * c0, _FACTORS[1] * c2  # modulo 2^64, all bits of the product
        c0, c1, c2, c3 = _high(p1) ^ c1 ^ k0, p1 & _WORD, _high(p0) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return [c0, c1, c2, c3]


def _high(product: torch.Tensor) -> torch.Tensor:
    # The shift copies the sign bit; the mask removes the copies.
    return (product >> 32) & _WORD


def words(key: int, first: int, count: int) -> torch.Tensor:
    """word(key, f) for the flat indices f = first .. first + count - 1, as int64."""
    begin, end = first // _BLOCK, -(-(first + count) // _BLOCK)
    counter = torch.arange(begin * _COUNTERS, end * _COUNTERS)
    zero = torch.zeros_like(counter)
    made = torch.stack(philox((counter & _WORD, counter >> 32, zero, zero), key))
    by_block = made.view(4, -1, _COUNTERS).transpose(0, 1).reshape(-1)
    return by_block[first - begin * _BLOCK :][:count]
