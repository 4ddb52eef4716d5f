"""The CUDA kernels' sources, run thread after thread on the host: the bits are the CPU's, whatever the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fuseo1_kernels import merge_tensors
from fuseo1_kernels.backends.contract import FuseParams, Norms, Ranked
from fuseo1_kernels.backends.cuda.backend import CudaBackend
from fuseo1_kernels.backends.registry import load_backend, load_gpu_backend
from fuseo1_kernels.errors import BackendError, MergeError
from fuseo1_kernels.in_memory import ops, tensor_merge
from fuseo1_kernels.in_memory.ops import as_array as array
from fuseo1_kernels.methods.sce import sce_params
from support.emulated import load_emulated
from support.fuse_cases import bit_masks, tensors_of
from support.gpu.data import tied, tuned, two_values
from support.gpu.general import Merges, MergesRefused, Methods, Surveys
from support.gpu.grid import Limits, SameBits, compare
from support.gpu.rows import Ranks, Scores
from support.oracles import fuse as emulation
from support.ranked import OUTSIDE
from support.tensors import BF16, FP16, assert_same_bits

pytestmark = pytest.mark.toolchain


@pytest.fixture(scope="module")
def gpu() -> CudaBackend:
    return load_emulated()


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu")


class TestOnHost(SameBits, Limits):
    pass


class TestFamilyOnHost(Merges, Surveys, Methods, MergesRefused):
    pass


class TestRowsOnHost(Ranks, Scores):
    @pytest.mark.parametrize("select", OUTSIDE.values(), ids=OUTSIDE)
    def test_what_is_outside_the_contract_is_refused(
        self, select: Ranked, gpu: CudaBackend
    ) -> None:
        tensors = [array(torch.zeros(512)), array(torch.ones(512))]
        with pytest.raises(ValueError, match="outside the contract"):
            gpu.fuse(tensors, FuseParams((1.0,), selects=(select,)), tensors[0], 0, 1)
        with pytest.raises(ValueError, match="outside the contract"):
            gpu.survey(tensors, Norms((select,)), 1)

    def test_rows_must_agree_and_chunks_hold_whole_rows(self, gpu: CudaBackend) -> None:
        inputs, long = [array(torch.zeros(1536))] * 3, Ranked(1, 0.4, 0.2, 512)
        params = FuseParams((1.0, 1.0), selects=(Ranked(1, 0.4, 0.2, 256), long))
        with pytest.raises(ValueError, match="outside the contract"):
            gpu.fuse(inputs, params, inputs[0], 0, 1)
        with pytest.raises(ValueError, match="outside the contract"):
            gpu.survey(inputs, Norms(params.selects), 1)
        for offset, count in ((256, 1024), (0, 768)):
            parts = [x.part(0, count) for x in inputs]
            with pytest.raises(ValueError, match="outside the contract"):
                gpu.fuse(parts, replace(params, selects=(long, long)), parts[0], offset, 1)


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
    """As tensors on a GPU take them; here the GPU is the host."""
    tensors = [t.to(BF16).view(100, 257) for t in tied(25_700, 3, torch.Generator().manual_seed(4))]
    keywords: dict[str, Any] = {
        "base_index": 0,
        "parameters": {"select_topk": 0.3, "variant": "mergekit"},
    }
    expected = merge_tensors(tensors, "sce", **keywords)
    for module in (ops, tensor_merge):
        monkeypatch.setattr(module, "backend_for", lambda inputs, backend: gpu)
    assert torch.equal(merge_tensors(tensors, "sce", **keywords), expected)
    out = torch.empty(257, 100, dtype=BF16).T
    assert merge_tensors(tensors, "sce", out=out, **keywords) is out
    assert torch.equal(out, expected)
    survey = ops.survey(tensors[0], tensors[1:], select_topk=0.3)
    params = sce_params(survey, 25_700, 0.3, "mergekit")
    assert torch.equal(ops.fuse(tensors[0], tensors[1:], params), expected)
    tensors[1][3, 4] = float("nan")
    with pytest.raises(MergeError, match="tensor 1 has 1"):
        merge_tensors(tensors, "sce", **keywords)


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
        weights=params.weights, shares=(), elect=kernels.ELECT_WEIGHTED, divisor=0.0, floor_divisor=0.0, scale=1.0,
        base_scale=1.0, selects=[kernels.Select.bits(w.ctypes.data) for w in words],
        masked=False, threshold=0, tie_limit=-1, offset=1 << 20, count=numel, out=out.data_ptr(), out_dtype=0,
        written=written.data_ptr(), room=(0, 0), stream=0,
    )  # fmt: skip
    assert_same_bits(out, expected)
    assert int(written) == int((~torch.isfinite(expected)).sum())
