"""The tests of the GPU's kernels, on the host (cuda/test_on_host.py) as on a GPU (test_gpu.py): the CPU's bits."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from fuseo1_kernels.backends.contract import Draw, FuseParams, Ranked
from fuseo1_kernels.backends.interface import GpuBackend, can_enqueue_small
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import SceResult, SurveyResult, expect
from fuseo1_kernels.errors import BackendError
from fuseo1_kernels.in_memory.ops import as_array as array
from fuseo1_kernels.methods.sce import sce_params
from fuseo1_kernels.system import resolve_threads
from support.gpu.data import KINDS, constant, halves, tied, tuned, two_values
from support.pairwise import sample
from support.tensors import BF16, DTYPES, FP16, FP32, assert_same_bits

TOPKS = (1.0, 0.9, 0.5, 0.1, 0.001, 0.0)
VARIANTS = ("fuseo1", "mergekit")
# compute-sanitizer makes kernels many times slower: it is given a part of the grid.
SMALL = os.environ.get("FUSEO1_SMALL_GRID") == "1"
# So does Triton's interpreter: by the element.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MOST = 9001 if INTERPRETED else 1 << 31

_PADDING = 32


def placed(tensor: torch.Tensor, by: int, device: torch.device) -> torch.Tensor:
    """A copy on `device` that begins `by` elements beyond an aligned address."""
    # In one copy from the host: initcheck is to find every byte initialised.
    padded = torch.full((tensor.numel() + _PADDING,), 7.0).to(tensor.dtype)
    padded[by : by + tensor.numel()] = tensor
    return padded.to(device)[by : by + tensor.numel()]


def surroundings(tensor: torch.Tensor) -> torch.Tensor:
    """All of the memory that a tensor is a part of, on the host."""
    whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return whole.set_(tensor.untyped_storage()).cpu()


def on_cpu(
    tensors: Sequence[torch.Tensor], select_topk: float, variant: str, dtype: torch.dtype
) -> tuple[SceResult, int, torch.Tensor]:
    """(survey, how many outputs are not finite, output)"""
    cpu, on_host = load_backend("cpu"), [t.cpu() for t in tensors]
    inputs, threads = [array(t) for t in on_host], resolve_threads(None)
    survey = expect(SceResult, cpu.survey(inputs, select_topk, threads))
    params = sce_params(survey, inputs[0].numel, select_topk, variant)
    out = torch.empty(inputs[0].numel, dtype=dtype)
    return survey, cpu.fuse(inputs, params, array(out), 0, threads), out


def on_gpu(
    gpu: GpuBackend,
    tensors: Sequence[torch.Tensor],
    select_topk: float,
    variant: str,
    out: torch.Tensor,
) -> tuple[SurveyResult, int]:
    inputs = [array(t) for t in tensors]
    survey = gpu.enqueue_survey(inputs, select_topk, variant)
    gpu.enqueue_fuse(inputs, survey, array(out))
    return gpu.result(survey)


def compare(
    gpu: GpuBackend,
    tensors: Sequence[torch.Tensor],
    select_topk: float,
    variant: str,
    out: torch.Tensor,
) -> int:
    """Assert that all is equal to the CPU's; returns how often the GPU read the tensor for the survey."""
    before = surroundings(out).clone()
    found = on_gpu(gpu, tensors, select_topk, variant, out)
    check(on_cpu(tensors, select_topk, variant, out.dtype), found, out, before)
    return found[0].passes


def check(
    expected: tuple[SurveyResult, int, torch.Tensor],
    found: tuple[SurveyResult, int],
    out: torch.Tensor,
    before: torch.Tensor,
) -> None:
    """Assert that all is as on the CPU, and that what lies around `out` is still as in `before`."""
    survey, bad, merged = expected
    differing = {
        name: (value, getattr(found[0], name))
        for name, value in vars(survey).items()
        if name != "passes" and getattr(found[0], name) != value
    }
    assert not differing, differing
    assert found[1] == bad, f"{found[1]} outputs are said to be not finite, not {bad}"
    before[out.storage_offset() :][: out.numel()] = merged
    assert_same_bits(surroundings(out), before, "the output and what lies around it")


def sampled_by_cuda(n: int) -> torch.Tensor:
    """Return a mask of the elements of a small tensor that the CUDA kernels sample."""
    sampled = torch.zeros(n, dtype=torch.bool)
    runs = n // 32 // 8
    stretch = n // runs
    for run in range(runs):
        jitter = ((run + 1) * 0x9E3779B97F4A7C15 % 2**64 >> 33) % (stretch - 7)
        start = (run * stretch + jitter) // 8 * 8
        sampled[start : start + 8] = True
    return sampled


Case = tuple[list[torch.Tensor], float, str, torch.Tensor]


def drawn(
    kind: Callable[..., list[torch.Tensor]], part: int, device: torch.device, few: bool = False
) -> Iterator[Case]:
    """Yield arguments of `compare`, drawn from all sizes, numbers of targets, dtypes, alignments and options.

    `few`: of two kinds of operands only, for kernels that are compiled for each.
    """
    draw, g = random.Random(f"{kind.__name__} {part}"), torch.Generator().manual_seed(7 + part)
    for _ in range(2 if SMALL else 4 if few else 5 if INTERPRETED else 10):
        dtypes: tuple[torch.dtype, ...]
        places: tuple[int, ...]
        out_places: tuple[int, ...]
        if few:
            dtypes, places = draw.choice([((BF16,) * 4, (0,)), ((BF16, FP32, FP16), (1,))])
            out_dtype, out_places = dtypes[0], places
        else:
            one, targets = draw.choice(DTYPES), draw.choice([1, 2, 3, 3, 4, 5, 7, 8, 9, 15, 16])
            same = draw.random() < 0.6
            dtypes = tuple(one if same else draw.choice(DTYPES) for _ in range(targets + 1))
            places, out_dtype, out_places = (0, 0, 1, 3, 8), draw.choice(DTYPES), (0, 0, 1)
        n = draw.choice([1, 7, 8, 255, 257, 4096, 4097, 65537, 131_072 + draw.randrange(1000)])
        n = min(n, 5000 if len(dtypes) > 9 else MOST)
        tensors = [
            placed(t.to(dtype), draw.choice(places), device)
            for t, dtype in zip(kind(n, len(dtypes) - 1, g), dtypes, strict=True)
        ]
        out = placed(torch.full((n,), 7.0).to(out_dtype), draw.choice(out_places), device)
        yield tensors, draw.choice(TOPKS), draw.choice(VARIANTS), out


class Limits:
    """Tests of a backend, the fixture `gpu`, on the host: what it refuses, and what it takes."""

    def test_what_is_refused(self, gpu: GpuBackend) -> None:
        with pytest.raises(BackendError, match="1 to 16 targets are supported on a GPU, not 17"):
            gpu.enqueue_survey([array(torch.zeros(4))] * 18, 1.0, "fuseo1")
        one, out = array(torch.zeros(4)), array(torch.zeros(5))
        with pytest.raises(BackendError, match="0 to 16 targets are supported on a GPU, not 17"):
            gpu.fuse([one] * 18, FuseParams((1.0,) * 17, elect="none"), one, 0, 1)
        for params in (FuseParams((1.0,)), FuseParams((1.0,), elect="none")):
            with pytest.raises(BackendError, match="as many elements as the inputs"):
                gpu.fuse([one] * 2, params, out, 0, 1)

    @pytest.mark.parametrize(
        "more",
        [
            {"elect": "weighted"},
            {"divisor": 2.0},
            {"shares": (1.0, 1.0)},
            {"scale": 0.5},
            {"base_scale": 0.0},
            {"selects": (Draw(1, 2), None)},
            {"selects": (Ranked(1, 0.4, 0.2, 256), None)},
        ],
        ids=str,
    )
    def test_merges_other_than_sces_are_not_enqueued(
        self, more: dict[str, Any], gpu: GpuBackend
    ) -> None:
        with pytest.raises(BackendError, match=f"backend {gpu.name} enqueues merges by sce alone"):
            gpu.pack_params(FuseParams((1.0, 2.0), **more))

    def test_no_elements(self, gpu: GpuBackend) -> None:
        for dtypes in ((BF16,) * 3, (FP32, BF16, FP32)):
            tensors = [torch.empty(0, dtype=dtype) for dtype in dtypes]
            for select_topk, variant in itertools.product((1.0, 0.5, 0.0), VARIANTS):
                assert (
                    compare(gpu, tensors, select_topk, variant, torch.empty_like(tensors[1])) == 0
                )

    def test_the_workspace_is_small(self, gpu: GpuBackend) -> None:
        """3 % of the inputs and 2.5 MiB."""
        for targets in (1, 2, 3, 7, 16):
            for numel in (1, 1 << 20, 1 << 23, 5120 * 27648, 1 << 33):
                for topk in (1.0, 0.1):
                    held = gpu.workspace_bytes(targets, numel, topk)
                    most = 0.03 * 2 * (targets + 1) * numel + (5 << 19)
                    assert held <= most, (targets, numel, topk)


class SameBits:
    """Tests of a backend, the fixture `gpu`, on the fixture `device`."""

    #: Elements of which so many tie that their candidates do not fit.
    MANY = 500_000

    @pytest.mark.parametrize(
        "part", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2, 3))]
    )
    @pytest.mark.parametrize("kind", sample(KINDS, 2), ids=lambda kind: kind.__name__)
    def test_the_bits_are_the_cpus(
        self,
        kind: Callable[..., list[torch.Tensor]],
        part: int,
        gpu: GpuBackend,
        device: torch.device,
    ) -> None:
        for case in drawn(kind, part, device, few=gpu.name == "triton" and not INTERPRETED):
            compare(gpu, *case)

    @pytest.mark.parametrize("select_topk", [0.5, 0.1])
    def test_one_read_is_the_rule(
        self, select_topk: float, gpu: GpuBackend, device: torch.device
    ) -> None:
        n = min(300_000, 10 * MOST)
        tensors = [t.to(device, BF16) for t in tuned(n, 3, torch.Generator().manual_seed(1))]
        out = torch.zeros(n, dtype=BF16, device=device)
        assert compare(gpu, tensors, select_topk, "mergekit", out) == 1

    def test_the_exact_path(self, gpu: GpuBackend, device: torch.device) -> None:
        """More ties than candidates can be kept; then the threshold and the cut come from histograms."""
        if SMALL and gpu.name == "triton":
            pytest.skip("it has room for more candidates than compute-sanitizer has time")
        g = torch.Generator().manual_seed(1)
        out = torch.zeros(self.MANY, dtype=BF16, device=device)

        def passes(made: list[torch.Tensor], topk: float) -> int:
            return compare(gpu, [t.to(device, BF16) for t in made], topk, "mergekit", out)

        of_one = [passes(constant(self.MANY, 3, g), topk) for topk in (0.1, 0.9)]
        of_halves = passes(halves(self.MANY, 3, g), 0.5)
        of_two = [passes(two_values(self.MANY, 3, g), topk) for topk in (0.1, 0.5, 0.9)]
        assert max(of_one + of_two) > 1
        if gpu.name == "cuda":
            # The scan; digits, one if the bracket is narrow; where ties are cut; the energies.
            assert of_one == [4, 4]
            assert of_halves == 5

    @pytest.mark.parametrize("beside", [0.25, 4.0], ids=["below", "above"])
    def test_the_bracket_misses(self, beside: float, gpu: GpuBackend, device: torch.device) -> None:
        """The sample is of other scores than the rest, among which the threshold is."""
        if gpu.name != "cuda":
            pytest.skip("the places are those that the CUDA kernels sample")
        n, g = 70_000, torch.Generator().manual_seed(1)
        made = [torch.zeros(n), *(torch.rand(n, generator=g) + 1 for _ in range(3))]
        sampled = sampled_by_cuda(n)
        # Two of three move little, so that all scores of the sample are in a range of their own.
        made[1] = (made[1] + 9) * torch.where(sampled, 1.0, beside)
        tensors = [t.to(device) for t in made]
        out = torch.zeros(n, dtype=FP32, device=device)
        assert compare(gpu, tensors, 0.5, "fuseo1", out) >= 5

    @pytest.mark.parametrize("offset", [0, 256, 65_536])
    def test_fuse_of_a_part(self, offset: int, gpu: GpuBackend, device: torch.device) -> None:
        """As `fuse` is called with given parameters, and with an offset."""
        tensors = [t.to(BF16) for t in tied(70_000, 3, torch.Generator().manual_seed(2))]
        cpu, inputs = load_backend("cpu"), [array(t) for t in tensors]
        survey = expect(SceResult, cpu.survey(inputs, 0.3, 2))
        params = sce_params(survey, 70_000, 0.3, "mergekit")
        part = [x.part(offset, 70_000 - offset) for x in inputs]
        expected = torch.zeros(70_000 - offset, dtype=BF16)
        assert cpu.fuse(part, params, array(expected), offset, 2) == 0
        placed_there = [t.to(device) for t in tensors]
        found = torch.zeros(70_000 - offset, dtype=BF16, device=device)
        there = [array(t).part(offset, 70_000 - offset) for t in placed_there]
        assert gpu.fuse(there, params, array(found), offset, 1) == 0
        assert_same_bits(found.cpu(), expected)

    def test_small_tensors_in_one_launch(self, gpu: GpuBackend, device: torch.device) -> None:
        if not can_enqueue_small(gpu):
            pytest.skip(f"backend {gpu.name} takes one tensor a call")
        draw, g = random.Random(3), torch.Generator().manual_seed(3)
        for _ in range(5 if SMALL else 25):
            targets, select_topk = draw.choice([1, 2, 3, 5, 8, 9, 16]), draw.choice(TOPKS)
            variant = draw.choice(VARIANTS)
            sets, outs = [], []
            for _ in range(draw.randrange(1, 6)):
                n = draw.choice([1, 255, 257, 5120, 20_000])
                made = draw.choice(KINDS)(n, targets, g)
                placing = [(t.to(draw.choice(DTYPES)), draw.choice([0, 3])) for t in made]
                sets.append([placed(t, by, device) for t, by in placing])
                outs.append(placed(torch.full((n,), 3.0).to(draw.choice(DTYPES)), 0, device))
            before = [surroundings(out).clone() for out in outs]
            inputs = [[array(t) for t in tensors] for tensors in sets]
            pending = gpu.enqueue_small(inputs, [array(o) for o in outs], select_topk, variant)
            found = gpu.results(pending)
            for i, tensors in enumerate(sets):
                check(
                    on_cpu(tensors, select_topk, variant, outs[i].dtype),
                    found[i],
                    outs[i],
                    before[i],
                )
