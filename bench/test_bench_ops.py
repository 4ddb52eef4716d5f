"""pytest-benchmark of survey and fuse: every instruction set, dtype and way of selecting.

pytest bench/test_bench_ops.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from report import SELECT_TOPK
from siblings import siblings

from fuseo1_kernels.backends import _cpu
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.in_memory.ops import fuse, survey
from fuseo1_kernels.methods.sce import sce_params

SHAPE = (1024, 1024)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture(params=_cpu.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this machine in turn."""
    load_backend("cpu")  # which takes FUSEO1_ISA, so that it does not do so later
    before = _cpu.isa()
    _cpu.use_isa(request.param)
    yield request.param
    _cpu.use_isa(before)


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def tensors(request: pytest.FixtureRequest) -> list[torch.Tensor]:
    """A base and three fine-tunes."""
    return siblings(SHAPE, dtype=request.param)


def _count_bytes(benchmark: Any, *moved: torch.Tensor) -> None:
    total = sum(t.numel() * t.element_size() for t in moved)
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.extra_info["GB/s"] = round(total / benchmark.stats.stats.median / 1e9, 2)


@pytest.mark.benchmark(group="survey")
@pytest.mark.parametrize("select_topk", SELECT_TOPK)
def test_survey(benchmark: Any, isa: str, tensors: list[torch.Tensor], select_topk: float) -> None:
    base, *targets = tensors
    result = benchmark(survey, base, targets, select_topk=select_topk)
    assert min(result.energy) > 0.0
    _count_bytes(benchmark, *tensors)


@pytest.mark.benchmark(group="fuse")
@pytest.mark.parametrize("select_topk", SELECT_TOPK)
@pytest.mark.parametrize("variant", ["fuseo1", "mergekit"])
def test_fuse(
    benchmark: Any, isa: str, tensors: list[torch.Tensor], select_topk: float, variant: str
) -> None:
    base, *targets = tensors
    surveyed = survey(base, targets, select_topk=select_topk)
    params = sce_params(surveyed, base.numel(), select_topk, variant)
    out = torch.zeros_like(base)
    benchmark(fuse, base, targets, params, out=out)
    assert not torch.equal(out, base)
    _count_bytes(benchmark, *tensors, out)
