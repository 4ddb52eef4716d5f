"""The ops on a real GPU: the bits are the CPU's.

Skipped where there is no GPU; FUSEO1_NEED_GPU=1 makes that a failure. FUSEO1_SMALL_GRID=1 draws a part of the
grid, for compute-sanitizer.
"""

from __future__ import annotations

import os

import pytest
import torch

from fuseo1_kernels.backends.interface import GpuBackend
from fuseo1_kernels.backends.registry import GPU_BACKENDS, load_gpu_backend
from fuseo1_kernels.errors import BackendError
from fuseo1_kernels.in_memory.ops import as_array as array
from fuseo1_kernels.system import free_memory
from support.gpu.data import tied, tuned
from support.gpu.general import Merges, Methods, Surveys
from support.gpu.grid import SMALL, SameBits, compare, on_cpu
from support.gpu.rows import Ranks, Scores
from support.tensors import BF16, assert_same_bits

pytestmark = pytest.mark.gpu

NEEDED = os.environ.get("FUSEO1_NEED_GPU") == "1"


def _cannot(reason: str) -> None:
    if NEEDED:
        pytest.fail(f"FUSEO1_NEED_GPU=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="module", params=GPU_BACKENDS)
def gpu(request: pytest.FixtureRequest) -> GpuBackend:
    if not torch.cuda.is_available():
        _cannot("torch finds no GPU here")
    try:
        return load_gpu_backend(request.param)
    except BackendError as error:
        _cannot(str(error))
        raise AssertionError from error  # not reached


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0)


class TestOnGpu(SameBits):
    MANY = 500_000 if SMALL else 8_000_000


class TestFamilyOnGpu(Merges, Surveys, Methods, Ranks, Scores):
    @pytest.fixture
    def gpu(self, gpu: GpuBackend) -> GpuBackend:
        if gpu.name == "triton":
            pytest.skip("hundreds of kinds of parameters, a kernel to compile for each")
        return gpu


class TestTritonsFamilyOnGpu(Methods):
    @pytest.fixture
    def gpu(self, gpu: GpuBackend) -> GpuBackend:
        if gpu.name != "triton":
            pytest.skip("has these tests, and more, above")
        return gpu


def _tensors(device: torch.device, seed: int = 1, n: int = 300_000) -> list[torch.Tensor]:
    return [t.to(device, BF16) for t in tuned(n, 3, torch.Generator().manual_seed(seed))]


def test_runs_are_alike(gpu: GpuBackend, device: torch.device) -> None:
    """A race between CTAs would show as a difference between runs."""
    tensors = [t.to(device) for t in tied(1_000_003, 3, torch.Generator().manual_seed(1))]
    for select_topk in (0.5, 0.01) * (1 if SMALL else 10):
        out = torch.zeros(1_000_003, device=device)
        compare(gpu, tensors, select_topk, "mergekit", out)


@pytest.mark.parametrize("select_topk", [1.0, 0.1])
def test_the_callers_stream(select_topk: float, gpu: GpuBackend, device: torch.device) -> None:
    """The inputs come late, on a stream that is not the default one."""
    late = _tensors(device)
    expected, _, merged = on_cpu(late, select_topk, "mergekit", BF16)
    tensors, out = [torch.ones_like(t) for t in late], torch.zeros_like(late[0])
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream(device)):
        torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second
        for tensor, source in zip(tensors, late, strict=True):
            tensor.copy_(source)
        inputs = [array(t) for t in tensors]
        survey = gpu.enqueue_survey(inputs, select_topk, "mergekit")
        gpu.enqueue_fuse(inputs, survey, array(out))
        assert gpu.result(survey)[0].energy == expected.energy
    assert_same_bits(out.cpu(), merged)


@pytest.mark.skipif(
    SMALL, reason="compute-sanitizer's runs allocate each tensor, which no graph can"
)
def test_as_a_graph(gpu: GpuBackend, device: torch.device) -> None:
    """Nothing waits for the device: survey and fuse can be captured, and replayed on other data."""
    tensors, other = _tensors(device), _tensors(device, seed=2)
    out = torch.zeros_like(tensors[0])
    inputs = [array(t) for t in tensors]

    def merge() -> None:
        survey = gpu.enqueue_survey(inputs, 0.1, "mergekit")
        gpu.enqueue_fuse(inputs, survey, array(out))

    merge()  # whatever is loaded or compiled at the first use cannot be captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        merge()
    for tensor, source in zip(tensors, other, strict=True):
        tensor.copy_(source)
    graph.replay()
    torch.cuda.synchronize()
    assert_same_bits(out.cpu(), on_cpu(other, 0.1, "mergekit", BF16)[2])


def test_a_device_that_is_not_the_current_one(gpu: GpuBackend) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU here; this needs two")
    there = torch.device("cuda", 1)
    tensors = _tensors(there)
    with torch.cuda.device(0):
        compare(gpu, tensors, 0.1, "mergekit", torch.zeros_like(tensors[0]))
        assert torch.cuda.current_device() == 0


@pytest.mark.skipif(SMALL, reason="too long for compute-sanitizer")
def test_more_than_two_to_the_31_elements(gpu: GpuBackend, device: torch.device) -> None:
    """So that neither elements nor bytes can be counted in 32 bits."""
    n, tile = 2**31 + 4099, (1 << 22) + 1
    needed = 8 * 2 * n  # on the GPU and on the host: inputs, output, and what is compared with them
    if min(torch.cuda.mem_get_info(device)[0], free_memory()) < needed:
        _cannot(f"this needs {needed >> 30} GiB of free memory, on the GPU and on the host")
    # Of few random numbers, whose distance grows from tile to tile: drawing 2^31 would take the host a minute.
    drawn = tuned(tile, 1, torch.Generator().manual_seed(5))
    base, step = drawn[0].to(device), (drawn[1] - drawn[0]).to(device)
    tensors = [torch.empty(n, dtype=BF16, device=device) for _ in range(2)]
    for start in range(0, n, tile):
        size = min(tile, n - start)
        tensors[0][start : start + size] = base[:size]
        tensors[1][start : start + size] = base[:size] + step[:size] * (1 + start / n)
    out = torch.zeros(n, dtype=BF16, device=device)
    for select_topk in (1.0, 0.1):
        compare(gpu, tensors, select_topk, "mergekit", out)
    torch.cuda.empty_cache()
