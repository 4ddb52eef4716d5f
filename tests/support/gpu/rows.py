"""The tests of what the GPU's kernels do by rows, on the host as on a GPU (support/gpu/grid.py): the CPU's bits."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from fuseo1_kernels.backends.arrays import Array
from fuseo1_kernels.backends.contract import (
    ALL,
    NONE,
    Band,
    Clamp,
    Cut,
    Divergences,
    FuseParams,
    Magnitudes,
    Norms,
    Overlaps,
    Ranked,
    RowFactors,
    Select,
)
from fuseo1_kernels.backends.interface import GpuBackend, Ops
from fuseo1_kernels.backends.results import MagnitudesResult, expect
from fuseo1_kernels.errors import BackendError
from fuseo1_kernels.in_memory.ops import as_array
from support import ranked
from support.fuse_cases import weights_of
from support.gpu.data import constant, nonfinite, tied, tuned
from support.gpu.general import PLACES, compare_fuse, compare_survey
from support.gpu.grid import SMALL, placed
from support.pairwise import pairwise
from support.tensors import BF16, DTYPES, FP16, FP32, siblings, wild

KEY = 0xDEADBEEF01234567
#: Of tensors, rows of the last dimension.
SHAPES = ((64, 48), (9, 1), (1, 255), (41, 8), (7, 401), (1, 4101))


class Ranks:
    """Tests of RANKED selections by a backend, the fixture `gpu`, on the fixture `device`."""

    @pairwise(
        "kind, row",
        *(ranked.KINDS[:: 4 if SMALL else 1], (1, 3, 31, 256, 257, 1000, 5120)),
        together=1,
    )
    def test_the_larger_of_a_row_the_likelier(
        self,
        kind: Callable[[int, torch.Generator], torch.Tensor],
        row: int,
        gpu: GpuBackend,
        device: torch.device,
    ) -> None:
        tensors = [t.to(device) for t in ranked.made(kind, row, max(2, min(1300 // row, 20)))]
        selects = ranked.selects(row)
        out = torch.zeros(len(tensors[0]), device=device)
        compare_fuse(gpu, tensors, ranked.params_of(selects), out)
        compare_survey(gpu, tensors, Norms(selects))
        compare_survey(gpu, tensors, Overlaps(selects))

    @pytest.mark.parametrize("targets", [1, 3, pytest.param(9, marks=pytest.mark.slow), 16])
    def test_beside_other_selections(
        self, targets: int, gpu: GpuBackend, device: torch.device
    ) -> None:
        """Far into a tensor, of any dtype and alignment; 256 elements are not whole rows."""
        draw, row, rows = random.Random(targets), 129, 20
        band = Band(Cut(0x3F000000, 700), Cut(0x40000000, 40))
        some: list[Select] = [
            Ranked(KEY, 0.3, 0.6, row),
            band,
            Ranked(7, 0.5, 0.0, row),
            Clamp(0.25),
            None,
        ]
        selects: tuple[Select, ...] = tuple(some[i % len(some)] for i in range(targets))
        g = torch.Generator().manual_seed(targets)
        tensors = [
            placed(torch.randn(row * rows, generator=g).to(draw.choice(DTYPES)), by, device)
            for by in (draw.choice(PLACES) for _ in range(targets + 1))
        ]
        for elect, offset in (("sum", 0), ("weighted", row << 30), ("none", row << 8)):
            params = FuseParams(weights_of(targets), elect=elect, selects=selects)  # type: ignore[arg-type]
            out = placed(torch.full((row * rows,), 7.0).to(BF16), draw.choice(PLACES), device)
            compare_fuse(gpu, tensors, params, out, offset)
        compare_survey(gpu, tensors, Norms(selects))
        compare_survey(gpu, tensors, Overlaps(selects))

    def test_a_single_long_row(self, gpu: GpuBackend, device: torch.device) -> None:
        row = 30_011
        tensors = [t.to(device, BF16) for t in ranked.made(ranked.differences, row, 1)]
        for low, span in ((0.25, 0.5), (1e-9, 0.999)):
            params = ranked.params_of((Ranked(KEY, low, span, row),))
            compare_fuse(gpu, tensors[:2], params, torch.zeros(row, device=device))

    def test_nothing_to_rank(self, gpu: GpuBackend, device: torch.device) -> None:
        empty = [torch.empty(0, device=device)] * 3
        params = ranked.params_of(ranked.selects(5))
        compare_fuse(gpu, empty, params, torch.empty(0, dtype=FP32, device=device))
        compare_survey(gpu, empty, Norms(params.selects))


def factors_of(rows: int, row: int) -> RowFactors:
    """Some of them 0, some large enough that scores overflow where d is large."""
    g = torch.Generator().manual_seed(rows)
    factors = torch.rand(rows, generator=g) * 10.0 ** torch.randint(-6, 4, (rows,), generator=g)
    factors[1::5] = 0.0
    return RowFactors(row, factors.numpy().tobytes())


class Scores:
    """Tests of divergences and of |d| times rows' factors by a backend, the fixture `gpu`, on the fixture `device`."""

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_divergences(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        gpu: GpuBackend,
        device: torch.device,
    ) -> None:
        """Of ordinary rows, of wild ones, of what is not finite, and of mixed dtypes at any alignment."""
        draw = random.Random(str((shape, dtype)))
        mixed = siblings(shape, 1, [dtype, draw.choice(DTYPES)])
        for made in (wild(shape, dtype), mixed):
            there = [placed(t.flatten(), draw.choice(PLACES), device) for t in made]
            compare_survey(gpu, there, Divergences(shape[1]))

    def test_divergences_of_rows_far_apart(self, gpu: GpuBackend, device: torch.device) -> None:
        g = torch.Generator().manual_seed(1)
        made = [torch.randn(12 * 300, generator=g) * scale for scale in (300.0, 1e6)]
        compare_survey(gpu, [t.to(device) for t in made], Divergences(300))

    def test_divergences_of_rows_that_say_nothing(
        self, gpu: GpuBackend, device: torch.device
    ) -> None:
        base, target = siblings((4, 40), 1, FP32)
        target[0], base[1], target[2, :], target[3] = base[0], torch.nan, torch.inf, -base[3]
        base[3, ::2] = -0.0
        compare_survey(gpu, [t.flatten().to(device) for t in (base, target)], Divergences(40))
        compare_survey(gpu, [torch.empty(0, device=device)] * 2, Divergences(7))

    @pytest.mark.parametrize(
        "row", [5, 401, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 255, 3001))]
    )
    @pytest.mark.parametrize("kind", [tuned, tied, nonfinite])
    def test_cuts_and_bands(
        self,
        kind: Callable[[int, int, torch.Generator], list[torch.Tensor]],
        row: int,
        gpu: GpuBackend,
        device: torch.device,
    ) -> None:
        """Every rank that decides otherwise than its neighbours; bands of one and of several targets, in parts."""
        draw, rows = random.Random(row), (3200 if row > 100 else 900) // row
        numel, factors = rows * row, factors_of(rows, row)
        made = kind(numel, 3, torch.Generator().manual_seed(row))
        tensors = [placed(t.to(draw.choice(DTYPES)), draw.choice(PLACES), device) for t in made]
        scores = (tensors[1].cpu().float() - tensors[0].cpu().float()).nan_to_num(0, 0, 0)
        nonzero = int(((scores.view(rows, row) * numbers(factors)[:, None]) != 0).sum())
        ranks = (0, 1, numel // 20, numel // 4, max(nonzero - 1, 0), nonzero, nonzero + 1, numel)
        compare_survey(gpu, tensors[:2], Magnitudes((ranks,), factors))
        compare_survey(gpu, tensors, Magnitudes((ranks[2:4], ranks[3:5], ranks[4:6]), factors))
        found = gpu.survey(
            [as_array(t) for t in tensors[:2]], Magnitudes((ranks[2:4],), factors), 1
        )
        near, far = expect(MagnitudesResult, found).cuts[0]
        for bands in (
            (Band(far, rows=factors), Band(far, near, rows=factors), Band(near)),
            (Band(NONE, rows=factors), Ranked(KEY, 0.3, 0.6, row), Band(ALL, far, rows=factors)),
        ):
            compare_survey(gpu, tensors, Norms(bands))
            params = FuseParams((1.0, -0.5, 0.3), elect="weighted", selects=bands)
            compare_fuse(gpu, tensors, params, torch.zeros(numel, dtype=BF16, device=device))
        start = 256 * (numel // 512)
        part = [t[start:] for t in tensors[:2]]
        params = FuseParams((1.0,), elect="none", divisor=1.0, selects=(Band(far, rows=factors),))
        out = torch.zeros(numel - start, dtype=FP16, device=device)
        compare_fuse(gpu, part, params, out, start)

    def test_scores_beyond_fp32(self, gpu: GpuBackend, device: torch.device) -> None:
        """They are the largest number; what is not finite is kept anyway."""
        made = torch.zeros(6), torch.tensor([3e38, 1, -2e38, torch.inf, 5.0, 0.5])
        tensors = [t.to(device) for t in made]
        factors = RowFactors(3, torch.tensor([18.0, 0.25]).numpy().tobytes())
        compare_survey(gpu, tensors, Magnitudes(((1, 2, 3, 5, 6),), factors))
        for cut in (Cut(0x7F7FFFFF, 5), Cut(0x7F7FFFFF, 1), NONE):
            selects = (Band(cut, rows=factors),)
            params = FuseParams((1.0,), elect="none", divisor=1.0, selects=selects)
            compare_fuse(gpu, tensors, params, torch.zeros(6, device=device))

    def test_scores_that_tie_in_masses(self, gpu: GpuBackend, device: torch.device) -> None:
        """More of one score than candidates can be kept."""
        rows, row = 8, 50_000
        tensors = [t.to(device) for t in constant(rows * row, 1, torch.Generator())]
        factors = RowFactors(row, torch.tensor([0.5] * 3 + [1.0] + [0.5] * 4).numpy().tobytes())
        passes = compare_survey(gpu, tensors, Magnitudes(((rows * row // 3,),), factors))
        assert passes > 1 or gpu.name != "cuda"


class Misfits:
    """A backend, the fixture `gpu`, refuses what does not fit its inputs; it may be the CPU's."""

    def test_requests_that_do_not_fit(self, gpu: Ops) -> None:
        inputs = [as_array(t) for t in siblings(300, 2, BF16)]
        few = RowFactors(3, bytes(4 * 99))
        params = FuseParams((1.0,), elect="none", divisor=1.0, selects=(Band(rows=few),))
        less = [inputs[0], inputs[1].part(0, 299)]
        rows = "factors for 297 elements, but there are 300"
        calls: tuple[tuple[Callable[[], object], str], ...] = (
            (lambda: gpu.survey(inputs, Norms((None,)), 1), "s for 1 targets, but there are 2"),
            (lambda: gpu.survey(inputs, Magnitudes(((1,),) * 3), 1), "ranks for 3 .* there are 2"),
            (lambda: gpu.survey(inputs, Divergences(3), 1), "for 1 targets, but there are 2"),
            (lambda: gpu.survey(inputs[:2], Norms((Band(rows=few),)), 1), rows),
            (lambda: gpu.fuse(inputs[:2], params, inputs[0], 0, 1), rows),
            (lambda: gpu.survey(less, 0.5, 1), "same number of elements"),
        )
        for call, words in calls:
            with pytest.raises(BackendError, match=words):
                call()
        with pytest.raises((ValueError, BackendError), match=f"{rows}|not as many factors as rows"):
            gpu.survey(inputs[:2], Magnitudes(((1,),), few), 1)
        for row in (0, -1, 7):
            with pytest.raises((ValueError, BackendError), match="outside the contract"):
                gpu.survey(inputs[:2], Divergences(row), 1)


class RanksRefused:
    """A backend, the fixture `gpu`, that checks RANKED selections in its native module; it may be the CPU's."""

    @pytest.mark.parametrize("select", ranked.OUTSIDE.values(), ids=ranked.OUTSIDE)
    def test_what_is_outside_the_contract(self, select: Ranked, gpu: Ops) -> None:
        tensors = [as_array(torch.zeros(512)), as_array(torch.ones(512))]
        self.refused(gpu, tensors, select)

    def test_rows_must_agree_and_chunks_hold_whole_rows(self, gpu: Ops) -> None:
        inputs, long = [as_array(torch.zeros(1536))] * 3, Ranked(1, 0.4, 0.2, 512)
        self.refused(gpu, inputs, Ranked(1, 0.4, 0.2, 256), long)
        params = ranked.params_of((long, long))
        for offset, count in ((256, 1024), (0, 768)):
            parts = [x.part(0, count) for x in inputs]
            with pytest.raises(ValueError, match="outside the contract"):
                gpu.fuse(parts, params, parts[0], offset, 1)

    @staticmethod
    def refused(gpu: Ops, inputs: list[Array], *selects: Select) -> None:
        with pytest.raises(ValueError, match="outside the contract"):
            gpu.fuse(inputs, ranked.params_of(selects), inputs[0], 0, 1)
        with pytest.raises(ValueError, match="outside the contract"):
            gpu.survey(inputs, Norms(selects), 1)


def numbers(factors: RowFactors) -> torch.Tensor:
    return torch.frombuffer(bytearray(factors.factors), dtype=FP32)
