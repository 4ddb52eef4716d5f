"""The GPU backends enqueue merges by sce alone; they refuse all others before they touch a GPU."""

from __future__ import annotations

from types import ModuleType

import pytest

from fuseo1_kernels.backends.contract import Draw, FuseParams, Ranked
from fuseo1_kernels.backends.cuda.backend import CudaBackend
from fuseo1_kernels.backends.interface import GpuBackend
from fuseo1_kernels.errors import BackendError


@pytest.fixture(params=["cuda", "triton"])
def gpu(request: pytest.FixtureRequest) -> GpuBackend:
    """The backend without a device; what is not refused fails otherwise."""
    if request.param == "cuda":
        return CudaBackend(ModuleType("_cuda"))
    pytest.importorskip("triton")
    from fuseo1_kernels.backends.triton.backend import TritonBackend

    return TritonBackend()


@pytest.mark.parametrize(
    "params",
    [
        FuseParams((1.0, 2.0), elect="weighted"),
        FuseParams((1.0, 2.0), divisor=2.0),
        FuseParams((1.0, 2.0), shares=(1.0, 1.0)),
        FuseParams((1.0, 2.0), scale=0.5),
        FuseParams((1.0, 2.0), base_scale=0.0),
        FuseParams((1.0, 2.0), selects=(Draw(1, 2), None)),
        FuseParams((1.0, 2.0), selects=(Ranked(1, 0.4, 0.2, 256), None)),
    ],
    ids=str,
)
def test_other_merges_are_not_enqueued(gpu: GpuBackend, params: FuseParams) -> None:
    with pytest.raises(BackendError, match=f"backend {gpu.name} enqueues merges by sce alone"):
        gpu.pack_params(params)
