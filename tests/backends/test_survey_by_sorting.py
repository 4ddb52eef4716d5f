"""Surveys of magnitudes, norms and inner products, against sums and sorts that share nothing with them."""

from __future__ import annotations

import math

import pytest
import torch

from fuseo1_kernels.backends.arrays import Array
from fuseo1_kernels.backends.contract import (
    ALL,
    NONE,
    NOTHING,
    Band,
    Cut,
    Gram,
    Magnitudes,
    Norms,
    Request,
)
from fuseo1_kernels.backends.interface import Surveyor
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import SurveyResult
from fuseo1_kernels.in_memory.ops import as_arrays
from support.tensors import BF16, FP32, siblings

N = 70_001


def surveyed(backend: str, tensors: list[torch.Tensor], request: Request) -> SurveyResult:
    return load_backend(backend).survey(as_arrays(tensors), request, 2)


def deltas(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [(t.float() - tensors[0].float()) for t in tensors[1:]]


def in_cut(d: torch.Tensor, cut: Cut) -> torch.Tensor:
    bits, index = d.abs().view(torch.int32), torch.arange(d.numel())
    return (bits > cut.threshold) | ((bits == cut.threshold) & (index <= cut.tie_limit))


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_a_cut_selects_the_largest_the_first_of_equals(backend: str, dtype: torch.dtype) -> None:
    tensors = siblings(N, 3, dtype)
    ranks = (1, 700, 35_000)
    result = surveyed(backend, tensors, Magnitudes((ranks, ranks, ranks)))
    for d, cuts in zip(deltas(tensors), result.cuts, strict=True):
        order = torch.sort(d.abs(), descending=True, stable=True).indices
        for k, cut in zip(ranks, cuts, strict=True):
            assert torch.equal(in_cut(d, cut).nonzero().flatten(), order[:k].sort().values)


def test_cuts_at_the_ends(backend: str) -> None:
    target = torch.tensor([0.0, -2.0, 1.0, 2.0, -0.0, 1.0])
    one, two = (int(torch.tensor(x).view(torch.int32)) for x in (1.0, 2.0))
    ranks = (0, 1, 2, 3, 4, 5, 6)
    result = surveyed(backend, [torch.zeros(6), target], Magnitudes((ranks,)))
    expected = (NONE, Cut(two, 1), Cut(two, 5), Cut(one, 2), ALL, ALL, ALL)
    assert result.cuts == (expected,)
    assert (result.selected, result.threshold, result.energy) == (-1, NOTHING, ())


def test_norms_are_sums_of_magnitudes(backend: str) -> None:
    tensors = siblings(N, 2, BF16)
    ranks = ((20_000, 700),) * 2
    bands = [Band(*cuts) for cuts in surveyed(backend, tensors, Magnitudes(ranks)).cuts]
    result = surveyed(backend, tensors, Norms((bands[0], None)))
    first, second = deltas(tensors)
    kept = in_cut(first, bands[0].keep) & ~in_cut(first, bands[0].drop)
    everything = [math.fsum(d.abs().tolist()) for d in (first, second)]
    some = [math.fsum(first.abs()[kept].tolist()), everything[1]]
    for found, sums in zip(result.norms, zip(everything, some, strict=True), strict=True):
        assert found == pytest.approx(sums, rel=1e-6)


@pytest.mark.parametrize("of_inputs", [False, True])
def test_gram_is_the_inner_products(backend: str, of_inputs: bool) -> None:
    tensors = siblings(N, 3, BF16)
    result = surveyed(backend, tensors, Gram(of_inputs))
    v = [t.float() for t in tensors] if of_inputs else deltas(tensors)
    assert len(result.gram) == len(v) and all(len(row) == len(v) for row in result.gram)
    for i, x in enumerate(v):
        for j, y in enumerate(v):
            exact = math.fsum((x.double() * y.double()).tolist())
            # Products are rounded, and quanta are half a unit of 2^-23 of a block's largest.
            room = N * 2**-23 * float((x * y).abs().max())
            assert abs(result.gram[i][j] - exact) < room
            assert result.gram[i][j] == result.gram[j][i]


def test_signs_of_products_count(backend: str) -> None:
    base = torch.zeros(300)
    up, down = torch.ones(300), torch.full((300,), -1.0)
    down[:100] = 3.0
    result = surveyed(backend, [base, up, down], Gram())
    assert result.gram == ((300.0, 100.0), (100.0, 1100.0))


def test_what_is_not_finite_counts_as_nothing(backend: str) -> None:
    base, first, second = torch.zeros(600), torch.ones(600), torch.full((600,), 2.0)
    base[0], first[1], second[2:4] = torch.nan, torch.inf, -torch.inf
    tensors = [base, first, second]
    nonfinite = (1, 1, 2, 0)
    cuts = surveyed(backend, tensors, Magnitudes(((596, 595), (596, 595))))
    one, two = (int(torch.tensor(x).view(torch.int32)) for x in (1.0, 2.0))
    assert cuts.cuts == ((ALL, Cut(one, 598)), (ALL, Cut(two, 598)))
    norms = surveyed(backend, tensors, Norms((None, None)))
    assert norms.norms == ((596.0, 596.0), (1192.0, 1192.0))
    gram = surveyed(backend, tensors, Gram())
    assert gram.gram == ((596.0, 1192.0), (1192.0, 2384.0))
    assert cuts.nonfinite == norms.nonfinite == gram.nonfinite == nonfinite


def test_nothing_to_survey(backend: str) -> None:
    tensors = [torch.empty(0)] * 3
    assert surveyed(backend, tensors, Magnitudes(((0,), (0,)))).cuts == ((NONE,), (NONE,))
    assert surveyed(backend, tensors, Norms((None, None))).norms == ((0.0, 0.0), (0.0, 0.0))
    assert surveyed(backend, tensors, Gram()).gram == ((0.0, 0.0), (0.0, 0.0))


REQUESTS: tuple[Request, ...] = (Magnitudes(((9, 7),) * 3), Norms((None,) * 3), Gram(), Gram(True))


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_chunks_change_nothing(backend: str, request_: Request) -> None:
    inputs = as_arrays(siblings(N, 3, (BF16, FP32)))
    engine = load_backend(backend)
    surveyor = engine.surveyor(3, N, request_, 2, 64 << 20)
    starts, length = surveyor.sample_runs()
    assert not (starts and length) or isinstance(request_, Magnitudes)
    surveyor.sample([])
    while not surveyor.done:
        feed(surveyor, inputs)
    found, expected = surveyor.result(), load_backend("reference").survey(inputs, request_, 1)
    assert (found.cuts, found.norms, found.gram) == (expected.cuts, expected.norms, expected.gram)
    assert found.nonfinite == expected.nonfinite


def feed(surveyor: Surveyor, inputs: list[Array]) -> None:
    for start in range(0, N, 4352):
        surveyor.update([a.part(start, min(4352, N - start)) for a in inputs], start)
    surveyor.end_pass()
