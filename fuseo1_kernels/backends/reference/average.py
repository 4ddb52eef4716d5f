"""average in torch, one line per formula: csrc/include/fuseo1/average.h states them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..contract import AverageParams
from .fuse import round_once


def average_chunk(
    inputs: Sequence[torch.Tensor],
    params: AverageParams,
    sums: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor | None:
    """Add flat inputs to `sums`, fp64, which the first ones begin; return the mean after the last, else None."""
    if params.first:
        sums.fill_(-0.0)
    for weight, x in zip(params.weights, inputs, strict=True):
        sums += torch.tensor(weight, dtype=torch.float64) * x.double()
    if not params.last:
        return None
    return round_once(
        sums / torch.tensor(params.divisor, dtype=torch.float64), dtype, ~torch.isfinite(sums)
    )
