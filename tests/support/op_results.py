"""The reference backend merges `siblings` once; all the tests that compare with it share the results."""

from __future__ import annotations

from functools import cache

import torch

from fuseo1_kernels import fuse, survey
from fuseo1_kernels.backends.contract import FuseParams
from fuseo1_kernels.backends.results import SceResult
from support.tensors import BF16, FP16, FP32, siblings

MIXED = (BF16, FP32, FP16)


def params_for(result: SceResult, masked: bool) -> FuseParams:
    """Weights that are no round numbers, and what the survey selected."""
    weights = tuple(
        torch.tensor([0.3 / (i + 1) for i in range(len(result.energy))], dtype=FP32).tolist()
    )
    floor = float(torch.tensor(1e-6, dtype=FP32)) if masked else 0.0
    return FuseParams(weights, floor, masked, result.threshold, result.tie_limit)


@cache
def surveyed(shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], topk: float) -> SceResult:
    base, *targets = siblings(shape, 3, dtypes)
    return survey(base, targets, select_topk=topk, backend="reference")


@cache
def fused(
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    topk: float,
    masked: bool,
    out: torch.dtype,
) -> torch.Tensor:
    base, *targets = siblings(shape, 3, dtypes)
    params = params_for(surveyed(shape, dtypes, topk), masked)
    return fuse(base, targets, params, out_dtype=out, backend="reference")
