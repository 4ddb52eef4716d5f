"""survey selects exactly among scores that make it hard, and sums the energies of the selected elements."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from fuseo1_kernels import fuse, survey
from fuseo1_kernels.backends.contract import FuseParams
from fuseo1_kernels.bench.data import Data
from support.hard_scores import PATTERNS, N, Pattern, constant, params_for, pattern, pattern_survey
from support.oracles import sce as sce_oracle
from support.pairwise import pairwise
from support.tensors import BF16, CPUS, FP32, assert_same_bits, learned, siblings

SOME_TOPKS = (1e-5, 0.1, 0.35, 0.5, 0.999, 1.0)


@cache
def fused(make: Pattern, topk: float, masked: bool) -> torch.Tensor:
    base, *targets = pattern(make)
    return fuse(base, targets, params_for(pattern_survey(make, topk), masked), backend="reference")


@pairwise("cpu, make, topk", CPUS, PATTERNS, SOME_TOPKS, indirect=["cpu"])
def test_hard_scores(cpu: str, make: Pattern, topk: float) -> None:
    base, *targets = pattern(make)
    expected = pattern_survey(make, topk)
    assert learned(survey(base, targets, select_topk=topk, backend=cpu)) == learned(expected)
    for masked in (False, True):
        merged = fuse(base, targets, params_for(expected, masked), backend=cpu)
        assert_same_bits(merged, fused(make, topk, masked))


def test_a_cut_through_ties_takes_the_lowest_indices(backend: str) -> None:
    base, *targets = pattern(constant)
    result = survey(base, targets, select_topk=0.5, backend=backend)
    assert (result.nonzero, result.selected, result.tie_limit) == (N, N // 2, N // 2 - 1)
    params = replace(params_for(result, masked=True), floor_divisor=0.0)
    changed = fuse(base, targets, params, backend=backend) != base
    assert changed[: N // 2].all() and not changed[N // 2 :].any()


def test_selection_and_energies_of_small_integers_are_those_of_exact_arithmetic(
    backend: str,
) -> None:
    g = torch.Generator().manual_seed(3)
    tensors = [torch.randint(-40, 41, (20_000,), generator=g).float() for _ in range(5)]
    base, *targets = tensors
    d = [t - base for t in targets]  # four: the divisions by N are exact too
    for topk in (0.01, 0.1, 0.37, 0.5, 0.93, 1.0):
        mask = sce_oracle.top_k(sce_oracle.scores([x.double() for x in d]), topk)
        result = survey(base, targets, select_topk=topk, backend=backend)
        assert result.selected == int(mask.sum())
        assert list(result.energy) == sce_oracle.energies([x.double() for x in d], mask)
        params = FuseParams((1.0,) * 4, 0.0, True, result.threshold, result.tie_limit)
        merged = fuse(base, targets, params, backend=backend)
        moved = torch.stack(d).ne(0).any(dim=0)
        elected = torch.stack(d).sum(dim=0)
        survivors = torch.stack([torch.where(elected >= 0, x > 0, x < 0) for x in d]).any(dim=0)
        assert torch.equal(merged != base, mask & moved & survivors)


def test_energies_are_within_two_to_the_minus_17_of_exact_ones(backend: str) -> None:
    base, *targets = siblings(50_000, 3, FP32, rms=1e-4)
    result = survey(base, targets, backend=backend)
    everything = torch.ones(50_000, dtype=torch.bool)
    exact = sce_oracle.energies([(t - base).double() for t in targets], everything)
    for energy, true in zip(result.energy, exact, strict=True):
        assert abs(energy - true) <= 2.0**-17 * true


# --- very many equal scores among the candidates ---


@pytest.mark.parametrize("topk", [0.05, 0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("levels", [1, 2, 40])
def test_masses_of_ties(levels: int, topk: float) -> None:
    """Masses of one score among the candidates: the cut is found by counting (marks.cpp)."""
    g = torch.Generator().manual_seed(levels)
    steps = torch.randint(1, levels + 1, (400_003,), generator=g) * 2.0**-10
    base = torch.zeros_like(steps)
    targets = [steps, base, -steps]
    expected = survey(base, targets, select_topk=topk, backend="reference")
    for threads in (1, 3):
        found = survey(base, targets, select_topk=topk, backend="cpu", threads=threads)
        assert replace(found, passes=1) == expected
    assert found.passes == 1


@pytest.mark.parametrize("topk", [0.1, 0.5])
@pytest.mark.parametrize("data", ["gauss:0.0001", "coarse:0.78", "coarse:0.99"])
def test_light_fine_tunes_in_bf16_tie_in_clusters(data: str, topk: float) -> None:
    base, *targets = Data.parse(data).make((1_000_001,), 4, BF16)
    expected = survey(base, targets, select_topk=topk, backend="reference")
    found = survey(base, targets, select_topk=topk, backend="cpu")
    assert found == expected
