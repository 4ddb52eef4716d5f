"""The GPU backends refuse what only the CPU's can do, and launches that know SCE alone the rest, without a GPU."""

from __future__ import annotations

from types import ModuleType

import pytest

from fuseo1_kernels.arrays import BY_NAME, Array
from fuseo1_kernels.backends import GpuBackend
from fuseo1_kernels.backends.cuda import CudaBackend
from fuseo1_kernels.backends.requests import (
    Band,
    Clamp,
    Divergences,
    Draw,
    FuseParams,
    Magnitudes,
    Ranked,
    Request,
    RowFactors,
)
from fuseo1_kernels.errors import BackendError

REFUSAL = "(enqueues )?merges by sce alone"


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
        FuseParams((1.0, 2.0), elect="none"),
        FuseParams((1.0, 2.0), divisor=2.0),
        FuseParams((1.0, 2.0), shares=(1.0, 1.0)),
        FuseParams((1.0, 2.0), scale=0.5),
        FuseParams((1.0, 2.0), base_scale=0.0),
        FuseParams((1.0, 2.0), selects=(Draw(1, 2), None)),
        FuseParams((1.0, 2.0), selects=(Band(), Clamp(1.0))),
        FuseParams((1.0, 2.0), selects=(Ranked(1, 0.4, 0.2, 256), None)),
    ],
    ids=str,
)
def test_other_merges_are_refused(gpu: GpuBackend, params: FuseParams) -> None:
    with pytest.raises(BackendError, match=f"backend {gpu.name} {REFUSAL}"):
        gpu.pack_params(params)


@pytest.mark.parametrize(
    "asked", [Divergences(1), Magnitudes(((1,),), RowFactors(1, bytes(4)))], ids=str
)
def test_surveys_of_rows_are_refused(gpu: GpuBackend, asked: Request) -> None:
    with pytest.raises(BackendError, match=f"backend {gpu.name} has no divergences.*use the CPU"):
        gpu.survey([], asked, 1)


def test_scores_by_rows_are_refused(gpu: GpuBackend) -> None:
    band = Band(rows=RowFactors(1, bytes(4)))
    array = Array(0, BY_NAME["bfloat16"], 0, None)
    with pytest.raises(BackendError, match=f"backend {gpu.name} has no divergences.*use the CPU"):
        gpu.fuse([array, array], FuseParams((1.0,), selects=(band,)), array, 0, 1)
