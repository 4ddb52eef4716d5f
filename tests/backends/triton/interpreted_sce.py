"""The Triton backend in Triton's interpreter: the bits are the CPU's, whatever the data.

TRITON_INTERPRET must be 1 before Triton is imported: test_triton.py runs this file in a process of its own. By hand:
TRITON_INTERPRET=1 pytest tests/backends/triton/interpreted_sce.py
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fuseo1_kernels import merge_tensors, torch_ops  # noqa: F401 (registers them)
from fuseo1_kernels.backends.arrays import BY_NAME, Array
from fuseo1_kernels.backends.interface import OnDevice, Room
from fuseo1_kernels.backends.registry import load_backend, load_gpu_backend
from fuseo1_kernels.backends.results import SceResult, expect
from fuseo1_kernels.backends.triton.backend import TritonBackend
from fuseo1_kernels.backends.triton.tuning import Config
from fuseo1_kernels.errors import MergeError
from fuseo1_kernels.in_memory import ops
from fuseo1_kernels.in_memory.ops import as_array as array
from fuseo1_kernels.methods.sce import sce_params
from support.gpu import data as gpu_data
from support.gpu.data import KINDS
from support.gpu.grid import TOPKS, Limits, compare, on_cpu, placed
from support.tensors import BF16, DTYPES, FP16, FP32, assert_same_bits, bits

# The interpreter computes with numpy, which warns where the contract has infinities and NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backend() -> TritonBackend:
    loaded = load_gpu_backend("triton")
    assert isinstance(loaded, TritonBackend)
    return loaded


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_bits_are_the_cpus(
    kind: Callable[..., list[torch.Tensor]], backend: TritonBackend
) -> None:
    """Drawn from sizes, numbers of targets, dtypes, alignments and options."""
    draw, g = random.Random(kind.__name__), generator(7)
    for _ in range(5):
        targets = draw.choice([1, 2, 3, 3, 5, 7, 16])
        n = draw.choice([1, 255, 256, 257, 4096, 4097, 9001])
        one = draw.choice(DTYPES)
        dtypes = [one if draw.random() < 0.6 else draw.choice(DTYPES) for _ in range(targets + 1)]
        tensors = [
            placed(t.to(dtype), draw.choice([0, 0, 1, 3, 8]), CPU)
            for t, dtype in zip(kind(n, targets, g), dtypes, strict=True)
        ]
        out = placed(torch.full((n,), 7.0).to(draw.choice(DTYPES)), draw.choice([0, 0, 1]), CPU)
        compare(backend, tensors, draw.choice(TOPKS), draw.choice(["fuseo1", "mergekit"]), out)


@pytest.mark.parametrize("targets", [1, 2, 3, 7, 16])
def test_every_number_of_targets_and_dtype(targets: int, backend: TritonBackend) -> None:
    for dtypes in ((BF16,), (FP16,), (FP32,), (BF16, FP32, FP16))[:: 3 if targets > 7 else 1]:
        tensors = [
            t.to(dtypes[i % len(dtypes)])
            for i, t in enumerate(gpu_data.tied(4097, targets, generator(1)))
        ]
        compare(backend, tensors, 0.3, "mergekit", torch.empty(4097, dtype=dtypes[-1]))


@pytest.mark.parametrize("select_topk", TOPKS)
@pytest.mark.parametrize("variant", ["fuseo1", "mergekit"])
def test_every_topk(select_topk: float, variant: str, backend: TritonBackend) -> None:
    """More than a segment, sampled, odd; one read is the rule."""
    tensors = [t.to(BF16) for t in gpu_data.tuned(70_001, 3, generator(2))]
    out = torch.empty(70_001, dtype=BF16)
    assert compare(backend, tensors, select_topk, variant, out) == 1


@pytest.mark.parametrize("config", [Config(2, 1), Config(4, 4), Config(8, 8)], ids=str)
def test_no_config_changes_a_bit(config: Config) -> None:
    tensors = [t.to(BF16) for t in gpu_data.nonfinite(9001, 3, generator(3))]
    compare(TritonBackend(config), tensors, 0.5, "mergekit", torch.empty(9001))


def test_configs_that_are_none() -> None:
    for rows, warps in ((3, 4), (32, 4), (4, 3), (4, 16)):
        with pytest.raises(ValueError, match="rows are 2, 4, 8 or 16"):
            Config(rows, warps)


@pytest.mark.parametrize("dtypes", [(BF16,), (FP32, BF16)], ids=["bf16", "mixed"])
def test_no_elements(dtypes: tuple[torch.dtype, ...], backend: TritonBackend) -> None:
    tensors = [torch.empty(0, dtype=dtypes[i % len(dtypes)]) for i in range(3)]
    for select_topk in (1.0, 0.5, 0.0):
        for variant in ("fuseo1", "mergekit"):
            out = torch.empty(0, dtype=BF16)
            assert compare(backend, tensors, select_topk, variant, out) == 0


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
    kind: Callable[..., list[torch.Tensor]],
    most: int,
    backend: TritonBackend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With room for few candidates: equal scores need the exact path, which takes up to five reads more."""
    monkeypatch.setattr("fuseo1_kernels.backends.triton.workspace._FLOOR", 1)
    n = 150_000
    tensors = [t.to(BF16) for t in kind(n, 3, generator(1))]
    assert compare(backend, tensors, 0.5, "mergekit", torch.empty(n)) == most


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_exact_path_on_any_data(
    kind: Callable[..., list[torch.Tensor]],
    backend: TritonBackend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Candidates never suffice where there is no sample and next to no room."""
    monkeypatch.setattr("fuseo1_kernels.backends.triton.workspace.runs_of", lambda numel: 0)
    monkeypatch.setattr("fuseo1_kernels.backends.triton.workspace.capacity_of", lambda *_: 0)
    passes = compare(backend, kind(5001, 3, generator(5)), 0.3, "mergekit", torch.empty(5001))
    all_zero = kind in (gpu_data.alike, gpu_data.denormal)
    assert passes in (5, 6) or (passes == 1 and all_zero)


def test_exact_ties_and_negative_zero(backend: TritonBackend) -> None:
    """Sums that lie on the output's rounding ties, and bases that no target changes."""
    g = generator(4)
    base = torch.randint(-64, 65, (4097,), generator=g).float() * torch.rand(4097, generator=g)
    base[::3] = -0.0
    targets = [base + torch.randint(-3, 4, (4097,), generator=g) * 2.0**-9 for _ in range(3)]
    targets = [torch.where(torch.rand(4097, generator=g) < 0.3, base, t) for t in targets]
    for dtype in DTYPES:
        for variant in ("fuseo1", "mergekit"):
            out = torch.empty(4097, dtype=dtype)
            compare(backend, [base, *targets], 0.6, variant, out)


@pytest.mark.parametrize("offset", [0, 256, 4096])
def test_fuse_of_a_part(offset: int, backend: TritonBackend) -> None:
    """As `fuse` is called with given parameters, and with an offset."""
    n = 9001
    tensors = [t.to(BF16) for t in gpu_data.tied(n, 3, generator(2))]
    cpu, inputs = load_backend("cpu"), [array(t) for t in tensors]
    params = sce_params(expect(SceResult, cpu.survey(inputs, 0.3, 2)), n, 0.3, "mergekit")
    for given in (params, replace(params, masked=False, floor_divisor=0.0)):
        part = [x.part(offset, n - offset) for x in inputs]
        expected, found = (torch.empty(n - offset, dtype=BF16) for _ in range(2))
        assert cpu.fuse(part, given, array(expected), offset, 2) == 0
        assert backend.fuse(part, given, array(found), offset, 1) == 0
        assert torch.equal(bits(found), bits(expected))


@pytest.mark.parametrize(
    ("variant", "topk"), [("fuseo1", 0.3), ("mergekit", 0.3), ("mergekit", 1.0)]
)
def test_parameters_as_numbers(variant: str, topk: float, backend: TritonBackend) -> None:
    """In the layout of torch.ops.fuseo1, of this backend's surveys and of the CPU's."""
    base, *targets = (t.to(BF16) for t in gpu_data.nonfinite(9001, 3, generator(6)))
    expected, params = torch.ops.fuseo1.survey(base, targets, topk, variant)
    inputs = [array(t) for t in (base, *targets)]
    surveyed = backend.enqueue_survey(inputs, topk, variant)
    learned, numbers = backend.numbers(surveyed)
    assert learned.tolist() == expected.tolist() and numbers.tolist() == params.tolist()
    out = torch.empty(9001, dtype=BF16)
    backend.enqueue_fuse(inputs, backend.from_numbers(params), array(out))
    assert_same_bits(out, torch.ops.fuseo1.fuse(base, targets, params))


def test_in_memory_that_is_given(backend: TritonBackend) -> None:
    """As the engine has it: inputs, workspace, result, parameters and output lie in one tensor of bytes."""
    n, variant, topk = 5000, "mergekit", 0.3
    tensors = [t.to(BF16) for t in gpu_data.tied(n, 3, generator(8))]
    sizes = [2 * n] * 5 + [backend.result_bytes, backend.params_bytes] * 2
    sizes.append(backend.workspace_bytes(3, n, topk))
    starts = [0, *itertools.accumulate(-(-size // 256) * 256 for size in sizes)]
    memory = torch.full((starts[-1],), 0x5A, dtype=torch.uint8)
    parts = [memory[at : at + size] for at, size in zip(starts, sizes, strict=False)]
    for part, tensor in zip(parts, tensors, strict=False):
        part.copy_(tensor.view(torch.uint8))
    *inputs, out = (Array(part.data_ptr(), BY_NAME["bfloat16"], n, memory) for part in parts[:5])
    expected, bad, merged = on_cpu(tensors, topk, variant, BF16)

    surveyed = backend.enqueue_survey(inputs, topk, variant, Room(parts[9], parts[5], parts[6]))
    backend.enqueue_fuse(inputs, surveyed, out)
    found = backend.unpack_result(bytes(parts[5].numpy()), 3)
    assert found == (replace(expected, passes=found[0].passes), bad)
    assert_same_bits(parts[4].view(BF16), merged)

    parts[4].zero_(), parts[7].zero_()
    packed = backend.pack_params(sce_params(expected, n, topk, variant))
    parts[8].copy_(torch.frombuffer(bytearray(packed), dtype=torch.uint8))
    backend.enqueue_fuse(inputs, OnDevice(parts[7], parts[8], 3), out)
    assert backend.unpack_result(bytes(parts[7].numpy()), 3)[1] == bad
    assert_same_bits(parts[4].view(BF16), merged)


class TestLimits(Limits):
    @pytest.fixture
    def gpu(self, backend: TritonBackend) -> TritonBackend:
        return backend


def test_through_the_public_functions() -> None:
    tensors = [t.to(BF16).view(20, 257) for t in gpu_data.tied(5140, 3, generator(4))]
    keywords: dict[str, Any] = {
        "base_index": 0,
        "parameters": {"select_topk": 0.3, "variant": "mergekit"},
    }
    expected = merge_tensors(tensors, "sce", **keywords)
    found = merge_tensors(tensors, "sce", backend="triton", **keywords)
    assert torch.equal(found, expected)
    survey = ops.survey(tensors[0], tensors[1:], select_topk=0.3, backend="triton")
    params = sce_params(survey, 5140, 0.3, "mergekit")
    fused = ops.fuse(tensors[0], tensors[1:], params, backend="triton")
    assert torch.equal(fused, expected)
    tensors[1][3, 4] = float("nan")
    with pytest.raises(MergeError, match="tensor 1 has 1"):
        merge_tensors(tensors, "sce", backend="triton", **keywords)
