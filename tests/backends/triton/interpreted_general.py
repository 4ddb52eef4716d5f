"""Merges other than SCE's by the Triton backend in Triton's interpreter: the bits are the CPU's, whatever is asked.

As interpreted_sce.py, run by test_triton.py in a process of its own.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from fuseo1_kernels import merge_tensors
from fuseo1_kernels.backends.contract import (
    Band,
    Clamp,
    Cut,
    Draw,
    Elect,
    FuseParams,
    Gram,
    Magnitudes,
    Norms,
    Request,
    Select,
)
from fuseo1_kernels.backends.registry import load_backend, load_gpu_backend
from fuseo1_kernels.backends.triton.backend import TritonBackend
from fuseo1_kernels.errors import MergeError
from fuseo1_kernels.in_memory.ops import as_array
from support.fuse_cases import ELECTS, MIXED, MODES, WEIGHTS, selections, tensors_of
from support.gpu import data as gpu_data
from support.gpu.data import KINDS
from support.gpu.general import MergesRefused
from support.gpu.grid import placed, surroundings
from support.gpu.rows import Ranks, Scores
from support.method_cases import CASES, Case
from support.tensors import BF16, DTYPES, FP16, FP32, assert_same_bits, learned, siblings

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


def compare_fused(
    backend: TritonBackend,
    tensors: Sequence[torch.Tensor],
    params: FuseParams,
    dtype: torch.dtype,
    offset: int = 0,
    by: int = 0,
) -> None:
    """Assert that output, what lies around it, and the count of what is not finite are as on the CPU."""
    inputs = [as_array(t.contiguous()) for t in tensors]
    numel = tensors[0].numel()
    expected, found = (placed(torch.full((numel,), 7.0).to(dtype), by, CPU) for _ in range(2))
    bad = load_backend("cpu").fuse(inputs, params, as_array(expected), offset, 2)
    assert backend.fuse(inputs, params, as_array(found), offset, 1) == bad
    assert_same_bits(surroundings(found), surroundings(expected), params)


@pytest.mark.parametrize("elect", ELECTS)
def test_every_election_selection_and_divisor(elect: Elect, backend: TritonBackend) -> None:
    """Each selection with two modes, in turn of sizes, dtypes, offsets and alignments."""
    pairs = list(itertools.product(selections(3).values(), MODES))
    few = pairs[:: len(MODES) + 1] + pairs[3 :: len(MODES) - 1]
    sizes, kinds = itertools.cycle([4097, 1, 256, 255, 257]), itertools.cycle([(BF16,), MIXED])
    outs, offsets = itertools.cycle(DTYPES), itertools.cycle([0, 256, (1 << 34) + 512, 1 << 40])
    for selects, mode in few:
        params = FuseParams(WEIGHTS[:3], elect=elect, selects=selects, **mode)  # type: ignore[arg-type]
        tensors = tensors_of(next(sizes), 3, next(kinds))
        compare_fused(backend, tensors, params, next(outs), next(offsets), by=len(tensors[0]) % 2)


@pytest.mark.parametrize("targets", [0, 1, 2, 5, 16])
def test_any_number_of_targets(targets: int, backend: TritonBackend) -> None:
    tensors = tensors_of(600, targets, (BF16, FP16))
    weights = tuple(itertools.islice(itertools.cycle(WEIGHTS), targets))
    every = selections(targets)
    for elect, out in zip(ELECTS, (*DTYPES, FP32), strict=True):
        plain = FuseParams(weights, elect=elect, scale=-0.5, base_scale=1.5)
        compare_fused(backend, tensors, plain, out)
        for name in ("in turn", "none"):
            compare_fused(backend, tensors, replace(plain, selects=every[name], masked=True), out)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_any_data(kind: Callable[..., list[torch.Tensor]], backend: TritonBackend) -> None:
    """Ties, denormals, overflows, and what is not finite."""
    selects: tuple[Select, ...] = (Band(Cut(0x3A000000, 700)), Draw(9, 1 << 31), Clamp(1e-3))
    tensors = kind(1300, 3, generator(7))
    for elect, dtype in zip(ELECTS, (BF16, FP16, FP32, BF16), strict=True):
        moved = [t.to(dtype) for t in tensors]
        params = FuseParams((0.3, -0.7, 1e3), elect=elect, selects=selects)
        compare_fused(backend, moved, params, dtype)
        for divisor, out in ((0.1, BF16), (None, FP16)):
            plain = FuseParams((0.3, 0.3, 0.4), elect=elect, divisor=divisor, masked=True)
            compare_fused(backend, moved, replace(plain, threshold=0x33000000), out)


def test_decimal_weights_on_ties(backend: TritonBackend) -> None:
    """Results that lie next to the output's ties, and bases that no target changes."""
    tensors = gpu_data.tied(4097, 3, generator(4))
    tensors[0][::3] = -0.0
    for elect, dtype in itertools.product(ELECTS, (BF16, FP16)):
        for selects in ((), (Draw(5, 1 << 30),) * 3):
            params = FuseParams((0.3, 0.3, 0.3), elect=elect, divisor=1.0, selects=selects)
            compare_fused(backend, [t.to(dtype) for t in tensors], params, dtype)


@pytest.mark.parametrize("key", [0, 0xFFFFFFFF, 0xDEADBEEF01234567, (1 << 64) - 1])
def test_draws(key: int, backend: TritonBackend) -> None:
    """Far into a tensor, where counters have more than 32 bits."""
    tensors = [torch.zeros(1100), torch.ones(1100)]
    for offset, limit in ((0, 1 << 31), (1 << 34, 0xF0000000), (0x7FFFFFFFFF00, 0x7FFFFFFF)):
        params = FuseParams((1.0,), elect="none", divisor=1.0, selects=(Draw(key, limit),))
        compare_fused(backend, tensors, params, FP32, offset)


def compare_surveys(
    backend: TritonBackend, tensors: Sequence[torch.Tensor], *requests: Request
) -> None:
    """Assert that all is as on the CPU."""
    inputs = [as_array(t.contiguous()) for t in tensors]
    for request in requests:
        found, expected = (b.survey(inputs, request, 2) for b in (backend, load_backend("cpu")))
        assert learned(found) == learned(expected), request


def sums_asked(targets: int, *names: str) -> list[Request]:
    norms = [Norms(selections(targets)[name]) for name in names]
    return [*norms, Gram(), Gram(of_inputs=True)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_sums_of_any_data(kind: Callable[..., list[torch.Tensor]], backend: TritonBackend) -> None:
    """Drawn from sizes, numbers of targets, dtypes and alignments."""
    draw, g = random.Random(kind.__name__), generator(7)
    for numel in (1, 257, 4097):
        targets = draw.choice([1, 2, 3, 5])
        tensors = [
            placed(t.to(draw.choice(DTYPES)), draw.choice([0, 1, 8]), CPU)
            for t in kind(numel, targets, g)
        ]
        name = draw.choice(["band", "between", "draw", "clamp", "none"])
        compare_surveys(backend, tensors, *sums_asked(targets, name))


@pytest.mark.parametrize("numel", [0, 255, 4096, 9001])
def test_sums_over_selections(numel: int, backend: TritonBackend) -> None:
    for dtypes in ((BF16,), MIXED):
        names = ("in turn", "ties", "draw") if numel else ("in turn",)
        asked = [*sums_asked(3, *names), Norms((None,) * 3)]
        compare_surveys(backend, tensors_of(numel, 3, dtypes), *asked)


def test_sums_of_many_targets(backend: TritonBackend) -> None:
    compare_surveys(backend, tensors_of(600, 16, (BF16,)), *sums_asked(16, "in turn"))


def test_sums_at_their_bounds(backend: TritonBackend) -> None:
    """Blocks of which every integer is 2^23, of either sign: their sums are +-2^31; and the largest squares."""
    largest = torch.full((512,), 1.0 - 2.0**-24)
    for factor in (1.0, -1.0, float.fromhex("0x1.fffffep63")):
        tensors = [torch.zeros(512), largest, torch.full((512,), factor)]
        compare_surveys(backend, tensors, *sums_asked(2, "draw"))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_cuts_of_any_data(kind: Callable[..., list[torch.Tensor]], backend: TritonBackend) -> None:
    draw = random.Random(kind.__name__)
    numel = draw.choice([257, 4097])
    tensors = [t.to(draw.choice(DTYPES)) for t in kind(numel, 2, generator(7))]
    compare_surveys(backend, tensors, Magnitudes(((draw.randrange(numel),), (numel // 3,))))


def test_cuts_at_the_ends(backend: TritonBackend) -> None:
    for numel in (0, 1, 300):
        tensors = tensors_of(numel, 2, MIXED)
        moved = int(torch.count_nonzero(tensors[1].float() - tensors[0].float()))
        for k in (0, 1, moved - 1, moved, moved + 1):
            compare_surveys(backend, tensors, Magnitudes(((max(k, 0),), (numel,))))


@pytest.mark.parametrize("room", [True, False], ids=["one read", "exact path"])
def test_cuts_among_many(
    room: bool, backend: TritonBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampled; where candidates have no room, from histograms of the whole tensor."""
    if not room:
        monkeypatch.setattr("fuseo1_kernels.backends.triton.workspace.runs_of", lambda numel: 0)
        monkeypatch.setattr("fuseo1_kernels.backends.triton.workspace.capacity_of", lambda *_: 0)
    tensors = siblings(40_001, 2, (BF16, FP32))
    compare_surveys(backend, tensors, Magnitudes(((400, 8_000), (0, 39_000))))
    found = backend.survey([as_array(t) for t in tensors], Magnitudes(((8_000,), (400,))), 1)
    # The read that counts, and the target's own.
    assert found.passes == 2 if room else found.passes in (5, 6)
    tensors[1][77] = torch.nan
    compare_surveys(backend, tensors, Magnitudes(((8_000,), (1,))))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_method(case: Case, backend: TritonBackend) -> None:
    tensors = siblings((5, 130), case.models, (BF16, FP32, FP16))[not case.base :]
    keywords: dict[str, Any] = {
        "base_index": 0 if case.base else None,
        "parameters": {**case.shared, **case.own},
        "random_seed": 3,
    }
    found = merge_tensors(tensors, case.method, backend="triton", **keywords)
    assert_same_bits(found, merge_tensors(tensors, case.method, **keywords))


def test_methods_refuse_what_is_not_finite(backend: TritonBackend) -> None:
    base, *targets = siblings(300, 2)
    targets[1][7] = torch.inf
    for method, parameters in (
        ("ties", {"weight": 1.0, "density": 0.2}),
        ("task_arithmetic", {"weight": 1.0}),
        ("model_stock", {}),
    ):
        with pytest.raises(MergeError, match="tensor 2 has 1"):
            merge_tensors(
                [base, *targets], method, base_index=0, parameters=parameters, backend="triton"
            )
    with pytest.raises(MergeError, match="tensor 0 has 1"):
        merge_tensors(targets[1:], "passthrough", backend="triton")


class TestRows(Ranks, Scores):
    @pytest.fixture
    def gpu(self, backend: TritonBackend) -> TritonBackend:
        return backend

    @pytest.fixture
    def device(self) -> torch.device:
        return CPU


class TestRefused(MergesRefused):
    @pytest.fixture
    def gpu(self, backend: TritonBackend) -> TritonBackend:
        return backend


def test_a_floor_below_zero(backend: TritonBackend) -> None:
    """SCE's parameters otherwise, of which a sum of weights may be 0: a division by 0."""
    for weights in ((1.0, 1.0), (1.0, -1.0)):
        params = FuseParams(weights, floor_divisor=-1.0)
        compare_fused(backend, tensors_of(600, 2, (BF16,)), params, FP32)


def test_nothing_to_fuse(backend: TritonBackend) -> None:
    empty = as_array(torch.empty(0))
    assert backend.fuse([empty] * 2, FuseParams((1.0,), elect="none"), empty, 0, 1) == 0
