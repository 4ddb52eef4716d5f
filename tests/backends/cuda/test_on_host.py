"""The CUDA kernels' sources, run on the host: the bits are the CPU's, whatever the data and the order of threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fuseo1_kernels import merge_tensors
from fuseo1_kernels.backends.contract import FuseParams
from fuseo1_kernels.backends.cuda.backend import CudaBackend
from fuseo1_kernels.backends.registry import load_backend, load_gpu_backend
from fuseo1_kernels.errors import BackendError
from fuseo1_kernels.in_memory import ops, tensor_merge
from fuseo1_kernels.in_memory.ops import as_array as array
from fuseo1_kernels.methods.sce import sce_params
from support.emulated import load_emulated
from support.fuse_cases import bit_masks, tensors_of
from support.gpu.data import tied, tuned, two_values
from support.gpu.general import Merges, Methods, Surveys
from support.gpu.grid import Limits, SameBits, compare
from support.gpu.rows import Misfits, Ranks, RanksRefused, Scores
from support.oracles import fuse as emulation
from support.tensors import BF16, FP16, assert_same_bits

pytestmark = pytest.mark.toolchain


@pytest.fixture(params=[1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def gpu(request: pytest.FixtureRequest) -> CudaBackend:
    """Every test begins anew with the seed, and so runs alike alone."""
    return load_emulated(request.param)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu")


class TestOnHost(SameBits, Limits):
    pass


class TestFamilyOnHost(Merges, Surveys, Methods):
    pass


class TestRowsOnHost(Ranks, Scores, Misfits, RanksRefused):
    pass


@pytest.mark.parametrize(
    ("kind", "numel"),
    [
        pytest.param(two_values, 300_000, id="many"),
        pytest.param(tuned, (1 << 22) + 5, id="large", marks=pytest.mark.slow),
    ],
)
def test_ties_are_cut_in_one_read(
    kind: Callable[..., list[torch.Tensor]], numel: int, gpu: CudaBackend
) -> None:
    """Tens of thousands of ties; and places of three digits."""
    tensors = [t.to(BF16) for t in kind(numel, 3, torch.Generator().manual_seed(1))]
    assert compare(gpu, tensors, 0.5, "mergekit", torch.zeros(numel, dtype=BF16)) == 1


def test_through_the_public_functions(gpu: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a given output, and op by op; as tensors on a GPU take them, which is the host here."""
    tensors = [t.to(BF16).view(100, 257) for t in tied(25_700, 3, torch.Generator().manual_seed(4))]
    parameters = {"select_topk": 0.3, "variant": "mergekit"}
    expected = merge_tensors(tensors, "sce", base_index=0, parameters=parameters)
    for module in (ops, tensor_merge):
        monkeypatch.setattr(module, "backend_for", lambda inputs, backend: gpu)
    out = torch.empty(257, 100, dtype=BF16).T
    assert merge_tensors(tensors, "sce", base_index=0, parameters=parameters, out=out) is out
    assert torch.equal(out, expected)
    survey = ops.survey(tensors[0], tensors[1:], select_topk=0.3)
    params = sce_params(survey, 25_700, 0.3, "mergekit")
    assert torch.equal(ops.fuse(tensors[0], tensors[1:], params), expected)


def test_launches_of_many_that_are_refused(gpu: CudaBackend) -> None:
    few, more, large = ([array(torch.zeros(n))] * k for n, k in ((4, 2), (4, 3), (70_000, 2)))
    for tensors, outs, words in (
        ([], [], "one tensor or more"),
        ([few, more], [few[0]] * 2, "all of as many targets"),
        ([few], [array(torch.zeros(5))], "an output of 5 elements for inputs of 4"),
        ([large], [array(torch.zeros(70_000))], "at most 65536 each"),
    ):
        with pytest.raises(BackendError, match=words):
            gpu.enqueue_small(tensors, outs, 1.0, "fuseo1")


@pytest.mark.parametrize(
    ("load", "name", "words"),
    [
        (load_backend, "cuda", "merges tensors that are in a GPU's memory"),
        (load_gpu_backend, "cpu", "works in the CPU's memory"),
        (load_gpu_backend, "vulkan", "there is no backend 'vulkan' for GPUs .* auto, cuda"),
    ],
)
def test_backends_of_the_other_memory(load: Callable[[str], object], name: str, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        load(name)


@pytest.mark.parametrize("numel", [1, 257, 4097])
def test_bits_select(numel: int, gpu: CudaBackend) -> None:
    """They are told from the chunk's first element; none of the package's merges uses them."""
    tensors, (masks, words) = tensors_of(numel, 3, (BF16, FP16)), bit_masks(numel)
    params = FuseParams((0.5, -0.25, 1.0), elect="weighted")
    expected = emulation.fuse(tensors, params, BF16, 0, masks)
    out, written = torch.zeros(numel, dtype=BF16), torch.zeros(1, dtype=torch.int64)
    kernels = gpu._kernels
    kernels.fuse_general(
        [(a.address, a.dtype.abi) for a in map(array, tensors)],
        weights=params.weights, shares=(), alone=(), elect=kernels.ELECT_WEIGHTED, divisor=0.0, floor_divisor=0.0,
        scale=1.0, base_scale=1.0, selects=[kernels.Select.bits(w.ctypes.data) for w in words],
        masked=False, threshold=0, tie_limit=-1, offset=1 << 20, count=numel, out=out.data_ptr(), out_dtype=0,
        written=written.data_ptr(), room=(0, 0), stream=0,
    )  # fmt: skip
    assert_same_bits(out, expected)
    assert int(written) == int((~torch.isfinite(expected)).sum())
