"""pytest-benchmark of survey and fuse: every instruction set, dtype and way of selecting.

pytest -m "" bench/test_bench_ops.py      (the marks that pyproject.toml selects by are those of tests/)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from report import SELECT_TOPK

from fuseo1_kernels.backends import _cpu
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.bench.calls import Call, calls_of
from fuseo1_kernels.bench.cases import Case

SHAPE = (1024, 1024)

DTYPES = pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
TOPKS = pytest.mark.parametrize("select_topk", SELECT_TOPK)


@pytest.fixture(params=_cpu.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this machine in turn."""
    load_backend("cpu")  # which takes FUSEO1_ISA, so that it does not do so later
    before = _cpu.isa()
    _cpu.use_isa(request.param)
    yield request.param
    _cpu.use_isa(before)


def run(benchmark: Any, call: Call) -> Any:
    """Measure the call; return its result."""
    result = benchmark(call.work)
    if benchmark.stats is not None:  # None with --benchmark-disable
        rate = call.nbytes / benchmark.stats.stats.median
        benchmark.extra_info["GB/s"] = round(rate / 1e9, 2)
    return result


@pytest.mark.benchmark(group="survey")
@DTYPES
@TOPKS
def test_survey(benchmark: Any, isa: str, dtype: str, select_topk: float) -> None:
    case = Case("sce", {"select_topk": select_topk}, SHAPE, dtype)
    tensors = case.make_tensors()
    calls = calls_of(case, tensors, torch.zeros_like(tensors[0]), passes=True)
    assert min(run(benchmark, calls["survey 1"]).energy) > 0.0


@pytest.mark.benchmark(group="fuse")
@DTYPES
@TOPKS
@pytest.mark.parametrize("variant", ["fuseo1", "mergekit"])
def test_fuse(benchmark: Any, isa: str, dtype: str, select_topk: float, variant: str) -> None:
    case = Case("sce", {"select_topk": select_topk, "variant": variant}, SHAPE, dtype)
    tensors = case.make_tensors()
    out = torch.zeros_like(tensors[0])
    run(benchmark, calls_of(case, tensors, out, passes=True)["fuse out="])
    assert not torch.equal(out, tensors[0])
