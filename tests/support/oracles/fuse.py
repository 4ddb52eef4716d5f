"""fuse in numpy, an operation a line, from the text of csrc/include/fuseo1/{fuse,select}.h alone.

It shares no code with the package, whose reference backend is in torch. numpy's operations round one at a time, in
fp64 but for SCE's votes. The result is rounded once, to the output's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fuseo1_kernels.backends.contract import Band, Clamp, Cut, Draw, FuseParams, Select
from support.oracles import sce as sce_oracle
from support.tensors import FP32, QUIET_NAN

F32: TypeAlias = npt.NDArray[np.float32]
F64: TypeAlias = npt.NDArray[np.float64]
Reals: TypeAlias = F32 | F64
Bools: TypeAlias = npt.NDArray[np.bool_]
Words: TypeAlias = npt.NDArray[np.uint64]

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: Sequence[Words], key: Sequence[int]) -> list[Words]:
    """Philox4x32-7 of four counter words and two key words (Salmon et al., SC 2011, section 4.3)."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(7):
        p, q = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1 = (q >> _HALF) ^ x1 ^ np.uint64(k0), q & _LOW
        x2, x3 = (p >> _HALF) ^ x3 ^ np.uint64(k1), p & _LOW
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [x0, x1, x2, x3]


def words(key: int, offset: int, count: int) -> Words:
    """word(key, f) of `count` elements from flat index `offset` on."""
    f = np.arange(offset, offset + count, dtype=np.uint64)
    block, j, c = f // np.uint64(256), f // np.uint64(64) % np.uint64(4), f % np.uint64(64)
    counter = block * np.uint64(64) + c
    zero = np.zeros_like(counter)
    four = philox([counter & _LOW, counter >> _HALF, zero, zero], [key % 2**32, key >> 32])
    chosen: Words = np.choose(j.astype(np.int64), four)
    return chosen


def in_cut(value: npt.NDArray[np.uint32], cut: Cut, offset: int) -> Bools:
    f = np.arange(offset, offset + value.size)
    inside: Bools = (value > cut.threshold) | ((value == cut.threshold) & (f <= cut.tie_limit))
    return inside


def taken(d: F32, select: Select | Bools, offset: int) -> F32:
    """z of d; a selection may also be a mask."""
    z = d
    if isinstance(select, Band):
        magnitude = np.abs(d).view(np.uint32)
        inside = in_cut(magnitude, select.keep, offset) & ~in_cut(magnitude, select.drop, offset)
        z = np.where(inside, d, np.float32(0))
    elif isinstance(select, Draw):
        z = np.where(words(select.key, offset, d.size) < select.limit, d, np.float32(0))
    elif isinstance(select, Clamp):
        most = np.float32(select.most)
        z = np.where(np.abs(d) > most, np.copysign(most, d), d)
    elif isinstance(select, np.ndarray):
        z = np.where(select, d, np.float32(0))
    return np.where(np.isfinite(d), z, d)


def total(terms: Sequence[Reals]) -> Reals:
    s = terms[0]
    for t in terms[1:]:
        s = s + t
    return s


def score(d: Sequence[F32]) -> npt.NDArray[np.uint32]:
    n = np.float32(len(d))
    mean = total(d) / n
    found: npt.NDArray[np.uint32] = np.abs(total([(x - mean) * (x - mean) for x in d]) / n).view(
        np.uint32
    )
    return found


def fuse(
    tensors: Sequence[torch.Tensor],
    params: FuseParams,
    dtype: torch.dtype,
    offset: int = 0,
    masks: Sequence[Bools] = (),
) -> torch.Tensor:
    """Return fuse's result on flat tensors, base first. `masks`: selections of kind BITS that replace the params'."""
    with np.errstate(all="ignore"):
        b, *x = (t.float().numpy() for t in tensors)
        out = params.base_scale * b.astype(np.float64)
        delta, broken = _delta([y - b for y in x], params, offset, masks) if x else (None, None)
        merged = sce_oracle.rounded(
            torch.from_numpy(out + (-0.0 if delta is None else delta)), dtype
        )
    nan = merged.isnan() if broken is None else merged.isnan() | torch.from_numpy(broken)
    integers = torch.int32 if dtype == FP32 else torch.int16
    return merged.view(integers).masked_fill(nan, QUIET_NAN[dtype]).view(dtype)


def _delta(
    d: Sequence[F32], params: FuseParams, offset: int, masks: Sequence[Bools]
) -> tuple[F64, Bools]:
    selects: Sequence[Any] = masks or params.selects or [None] * len(d)
    z = [taken(x, select, offset) for x, select in zip(d, selects, strict=True)]
    t = [w * x.astype(np.float64) for w, x in zip(params.weights, z, strict=True)]
    votes: list[Any] = z if params.elect == "sum" else t
    s = total([np.sign(x) for x in t] if params.elect == "count" else votes)
    alive: list[Any] = [np.where(s >= 0, v > 0, v < 0) for v in votes]
    broken = ~np.isfinite(s)
    if params.elect == "count":
        broken = np.any([~np.isfinite(x) for x in t], axis=0)
    elif params.elect == "none":
        alive, broken = [x != 0 for x in t], ~np.isfinite(total(t))
    if params.masked:
        kept = in_cut(score(d), Cut(params.threshold, params.tie_limit), offset)
        alive = [a & kept for a in alive]
    num, den = np.full_like(t[0], -0.0), np.zeros_like(t[0])
    for share, x, a in zip(params.shares or params.weights, t, alive, strict=True):
        num, den = np.where(a, num + x, num), np.where(a, den + share, den)
    for factor, x, a in zip(params.alone or (), t, alive, strict=bool(params.alone)):
        num = np.where(a & (np.sum(alive, axis=0) == 1), factor * x, num)
    floor = params.floor_divisor
    zero = den == 0 if params.elect == "sum" else np.abs(den) < 2.0**-27
    by = np.maximum(den, floor) if floor else np.where(zero, 1.0, den)
    delta = params.scale * (num / (params.divisor or by))
    return np.where(np.any(alive, axis=0), delta, -0.0), broken
