"""fuse in torch, one line per formula: csrc/include/fuseo1/fuse.h states them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..contract import Cut, Elect, FuseParams
from .select import in_cut, part
from .surveys import task_vectors, total, variance_bits

#: A sum of shares whose magnitude is below this counts as 0, but for the election of SCE, whose weights cannot cancel.
_LEAST_DIVISOR = 2.0**-27

#: By dtype: integers of its size, and the quiet NaN.
_NAN = {
    torch.bfloat16: (torch.int16, 0x7FC0),
    torch.float16: (torch.int16, 0x7E00),
    torch.float32: (torch.int32, 0x7FC00000),
}


def fuse_chunk(
    inputs: Sequence[torch.Tensor], params: FuseParams, offset: int, dtype: torch.dtype
) -> torch.Tensor:
    """Merge the chunk at flat index `offset` of flat base and targets; every NaN of the result is the quiet NaN."""
    wide = [x.float() for x in inputs]
    d = task_vectors(wide)
    base = _fp64(params.base_scale) * wide[0].double()
    delta, nan = _delta(d, params, offset) if d else (_empty_sum(base), base.isnan())
    return round_once(base + delta, dtype, nan)


def _delta(
    d: Sequence[torch.Tensor], params: FuseParams, offset: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(delta, nan): delta is added to the base; where nan is set the result is NaN whatever delta is."""
    selects = params.selects or (None,) * len(d)
    z = [part(x, select, offset) for x, select in zip(d, selects, strict=True)]
    t = [_fp64(w) * x.double() for w, x in zip(params.weights, z, strict=True)]
    survives, nan = _elect(params.elect, z, t)
    if params.masked:
        kept = in_cut(variance_bits(d), Cut(params.threshold, params.tie_limit), offset)
        survives = [alive & kept for alive in survives]
    num, den = _empty_sum(t[0]), torch.zeros_like(t[0])
    for share, x, alive in zip(params.shares or params.weights, t, survives, strict=True):
        num = num + torch.where(alive, x, _empty_sum(num))
        den = den + torch.where(alive, _fp64(share), torch.zeros_like(den))
    survivors = torch.stack(survives).sum(dim=0)
    for factor, alive in zip(params.alone or (1.0,) * len(d), survives, strict=True):
        num = torch.where(alive & (survivors == 1), _fp64(factor) * num, num)
    delta = _fp64(params.scale) * (num / _divisor(den, params))
    return torch.where(survivors > 0, delta, _empty_sum(delta)), nan


def _elect(
    elect: Elect, z: Sequence[torch.Tensor], t: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """(survives, nan): the mask of each target's survivors, and the mask of elements whose votes are not finite."""
    if elect == "none":
        return [x != 0 for x in t], ~torch.isfinite(total(t))
    votes = z if elect == "sum" else t
    s = total([torch.sign(x) for x in t] if elect == "count" else votes)
    survives = [torch.where(s >= 0, x > 0, x < 0) for x in votes]
    if elect == "count":
        return survives, ~torch.stack([torch.isfinite(x) for x in t]).all(dim=0)
    return survives, ~torch.isfinite(s)


def _divisor(den: torch.Tensor, params: FuseParams) -> torch.Tensor:
    if params.divisor:
        return _fp64(params.divisor)
    if params.floor_divisor:
        return den.maximum(_fp64(params.floor_divisor))
    is_zero = den == 0 if params.elect == "sum" else den.abs() < _LEAST_DIVISOR
    return torch.where(is_zero, torch.ones_like(den), den)


def round_once(x: torch.Tensor, dtype: torch.dtype, nan: torch.Tensor) -> torch.Tensor:
    """fp64 x, rounded once; the quiet NaN where `nan` is set or x is NaN."""
    rounded = _round(x, dtype)
    integers, quiet_nan = _NAN[dtype]
    return rounded.view(integers).masked_fill(nan | rounded.isnan(), quiet_nan).view(dtype)


def _round(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """fp64 x, rounded once: to a narrower dtype through fp32 that is rounded to odd."""
    near = x.float()
    if dtype == torch.float32:
        return near
    error = x - near
    bits = near.view(torch.int32)
    outward = torch.where((error < 0) == near.signbit(), 1, -1).to(torch.int32)
    to_odd = (bits & 1 == 0) & ((error > 0) | (error < 0))
    return torch.where(to_odd, bits + outward, bits).view(torch.float32).to(dtype)


def _empty_sum(like: torch.Tensor) -> torch.Tensor:
    """-0.0: b + -0.0 is b, for b = -0.0 too."""
    return torch.full_like(like, -0.0)


def _fp64(number: float) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.float64)
