"""The Triton backend in Triton's interpreter: the bits are the CPU's, whatever the data and whatever is asked.

TRITON_INTERPRET must be 1 before Triton is imported: test_triton.py runs this file in a process of its own. By hand:
TRITON_INTERPRET=1 pytest tests/backends/triton/interpreted_kernels.py
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fuseo1_kernels import merge_tensors, torch_ops  # noqa: F401 (registers them)
from fuseo1_kernels.backends.arrays import BY_NAME, Array
from fuseo1_kernels.backends.contract import Draw, FuseParams, Magnitudes
from fuseo1_kernels.backends.interface import OnDevice, Room
from fuseo1_kernels.backends.registry import load_gpu_backend
from fuseo1_kernels.backends.triton.backend import TritonBackend
from fuseo1_kernels.backends.triton.tuning import Config
from fuseo1_kernels.errors import MergeError
from fuseo1_kernels.in_memory import ops
from fuseo1_kernels.in_memory.ops import as_array as array
from fuseo1_kernels.methods.sce import sce_params
from support.fuse_cases import ELECTS
from support.gpu import data as gpu_data
from support.gpu.data import KINDS
from support.gpu.general import (
    Merges,
    Methods,
    Surveys,
    compare_fuse,
    compare_survey,
)
from support.gpu.grid import TOPKS, VARIANTS, Limits, SameBits, compare, on_cpu
from support.gpu.rows import Misfits, Ranks, Scores
from support.tensors import BF16, DTYPES, FP16, FP32, assert_same_bits, siblings

# The interpreter computes with numpy, which warns where the contract has infinities and NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def gpu() -> TritonBackend:
    loaded = load_gpu_backend("triton")
    assert isinstance(loaded, TritonBackend)
    return loaded


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu")


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates never suffice where there is no sample and next to no room."""
    monkeypatch.setattr("fuseo1_kernels.backends.triton.workspace.runs_of", lambda numel: 0)
    monkeypatch.setattr("fuseo1_kernels.backends.triton.workspace.capacity_of", lambda *_: 0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestScesMerges(SameBits, Limits):
    @pytest.mark.parametrize(
        ("kind", "most"),
        [
            (gpu_data.two_values, 6),
            (gpu_data.constant, 6),
            (gpu_data.tied, 6),
            (gpu_data.alike, 1),
            (gpu_data.outlier, 1),
        ],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_the_exact_path(
        self,
        kind: Callable[..., list[torch.Tensor]],
        most: int,
        gpu: TritonBackend,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """With room for few candidates: equal scores need the exact path, which takes up to five reads more."""
        monkeypatch.setattr("fuseo1_kernels.backends.triton.workspace._FLOOR", 1)
        n = 150_000
        tensors = [t.to(BF16) for t in kind(n, 3, generator(1))]
        assert compare(gpu, tensors, 0.5, "mergekit", torch.empty(n)) == most


class TestOtherMerges(Merges, Surveys, Methods):
    pass


class TestRows(Ranks, Scores, Misfits):
    pass


@pytest.mark.parametrize("select_topk", TOPKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_topk(select_topk: float, variant: str, gpu: TritonBackend) -> None:
    """More than a segment, sampled, odd; one read is the rule."""
    tensors = [t.to(BF16) for t in gpu_data.tuned(70_001, 3, generator(2))]
    out = torch.empty(70_001, dtype=BF16)
    assert compare(gpu, tensors, select_topk, variant, out) == 1


@pytest.mark.parametrize("config", [Config(2, 1), Config(4, 4), Config(8, 8)], ids=str)
def test_no_config_changes_a_bit(config: Config) -> None:
    tensors = [t.to(BF16) for t in gpu_data.nonfinite(9001, 3, generator(3))]
    compare(TritonBackend(config), tensors, 0.5, "mergekit", torch.empty(9001))


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_exact_path_on_any_data(
    kind: Callable[..., list[torch.Tensor]], gpu: TritonBackend
) -> None:
    passes = compare(gpu, kind(5001, 3, generator(5)), 0.3, "mergekit", torch.empty(5001))
    all_zero = kind in (gpu_data.alike, gpu_data.denormal)
    assert passes in (5, 6) or (passes == 1 and all_zero)


@pytest.mark.usefixtures("no_room")
def test_the_exact_path_of_cuts(gpu: TritonBackend) -> None:
    """From histograms of the whole tensor."""
    tensors = siblings(40_001, 2, (BF16, FP32))
    compare_survey(gpu, tensors, Magnitudes(((400, 8_000), (0, 39_000))))
    assert compare_survey(gpu, tensors, Magnitudes(((8_000,), (400,)))) in (5, 6)
    tensors[1][77] = torch.nan
    compare_survey(gpu, tensors, Magnitudes(((8_000,), (1,))))


def test_exact_ties_and_negative_zero(gpu: TritonBackend) -> None:
    """Sums that lie on the output's rounding ties, and bases that no target changes."""
    g = generator(4)
    base = torch.randint(-64, 65, (4097,), generator=g).float() * torch.rand(4097, generator=g)
    base[::3] = -0.0
    targets = [base + torch.randint(-3, 4, (4097,), generator=g) * 2.0**-9 for _ in range(3)]
    targets = [torch.where(torch.rand(4097, generator=g) < 0.3, base, t) for t in targets]
    for dtype, variant in itertools.product(DTYPES, VARIANTS):
        compare(gpu, [base, *targets], 0.6, variant, torch.empty(4097, dtype=dtype))


def test_decimal_weights_on_ties(gpu: TritonBackend) -> None:
    """Results that lie next to the output's ties, and bases that no target changes."""
    tensors = gpu_data.tied(4097, 3, generator(4))
    tensors[0][::3] = -0.0
    for elect, dtype in itertools.product(ELECTS, (BF16, FP16)):
        for selects in ((), (Draw(5, 1 << 30),) * 3):
            params = FuseParams((0.3, 0.3, 0.3), elect=elect, divisor=1.0, selects=selects)
            compare_fuse(gpu, [t.to(dtype) for t in tensors], params, torch.empty(4097).to(dtype))


@pytest.mark.parametrize(
    ("variant", "topk"), [("fuseo1", 0.3), ("mergekit", 0.3), ("mergekit", 1.0)]
)
def test_parameters_as_numbers(variant: str, topk: float, gpu: TritonBackend) -> None:
    """In the layout of torch.ops.fuseo1, of this backend's surveys and of the CPU's."""
    base, *targets = (t.to(BF16) for t in gpu_data.nonfinite(9001, 3, generator(6)))
    expected, params = torch.ops.fuseo1.survey(base, targets, topk, variant)
    inputs = [array(t) for t in (base, *targets)]
    learned, numbers = gpu.numbers(gpu.enqueue_survey(inputs, topk, variant))
    assert learned.tolist() == expected.tolist() and numbers.tolist() == params.tolist()
    out = torch.empty(9001, dtype=BF16)
    gpu.enqueue_fuse(inputs, gpu.from_numbers(params), array(out))
    assert_same_bits(out, torch.ops.fuseo1.fuse(base, targets, params))


def test_in_memory_that_is_given(gpu: TritonBackend) -> None:
    """As the engine has it: inputs, workspace, result, parameters and output lie in one tensor of bytes."""
    n, variant, topk = 5000, "mergekit", 0.3
    tensors = [t.to(BF16) for t in gpu_data.tied(n, 3, generator(8))]
    sizes = [2 * n] * 5 + [gpu.result_bytes, gpu.params_bytes] * 2
    sizes.append(gpu.workspace_bytes(3, n, topk))
    starts = [0, *itertools.accumulate(-(-size // 256) * 256 for size in sizes)]
    memory = torch.full((starts[-1],), 0x5A, dtype=torch.uint8)
    parts = [memory[at : at + size] for at, size in zip(starts, sizes, strict=False)]
    for part, tensor in zip(parts, tensors, strict=False):
        part.copy_(tensor.view(torch.uint8))
    *inputs, out = (Array(part.data_ptr(), BY_NAME["bfloat16"], n, memory) for part in parts[:5])
    expected, bad, merged = on_cpu(tensors, topk, variant, BF16)

    surveyed = gpu.enqueue_survey(inputs, topk, variant, Room(parts[9], parts[5], parts[6]))
    gpu.enqueue_fuse(inputs, surveyed, out)
    found = gpu.unpack_result(bytes(parts[5].numpy()), 3)
    assert found == (replace(expected, passes=found[0].passes), bad)
    assert_same_bits(parts[4].view(BF16), merged)

    parts[4].zero_(), parts[7].zero_()
    packed = gpu.pack_params(sce_params(expected, n, topk, variant))
    parts[8].copy_(torch.frombuffer(bytearray(packed), dtype=torch.uint8))
    gpu.enqueue_fuse(inputs, OnDevice(parts[7], parts[8], 3), out)
    assert gpu.unpack_result(bytes(parts[7].numpy()), 3)[1] == bad
    assert_same_bits(parts[4].view(BF16), merged)


def test_through_the_public_functions() -> None:
    """By name, where the tests above hand the backend over."""
    tensors = [t.to(BF16).view(20, 257) for t in gpu_data.tied(5140, 3, generator(4))]
    parameters = {"select_topk": 0.3, "variant": "mergekit"}
    keywords: dict[str, Any] = {"base_index": 0, "parameters": parameters}
    expected = merge_tensors(tensors, "sce", **keywords)
    assert torch.equal(merge_tensors(tensors, "sce", backend="triton", **keywords), expected)
    survey = ops.survey(tensors[0], tensors[1:], select_topk=0.3, backend="triton")
    params = sce_params(survey, 5140, 0.3, "mergekit")
    fused = ops.fuse(tensors[0], tensors[1:], params, backend="triton")
    assert torch.equal(fused, expected)
    tensors[1][3, 4] = float("nan")
    with pytest.raises(MergeError, match="tensor 1 has 1"):
        merge_tensors(tensors, "sce", backend="triton", **keywords)
