"""Surveys of magnitudes, norms, overlaps and inner products, against oracles of their own (oracles/surveys.py)."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuseo1_kernels.backends import _cpu
from fuseo1_kernels.backends.contract import ALL, NONE, Cut, Gram, Magnitudes, Norms, Overlaps
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import GramResult, MagnitudesResult, NormsResult, expect
from support.hard_scores import PATTERNS, Pattern, pattern
from support.oracles.surveys import exponents_of, products, quanta_bound, selected, widen
from support.pairwise import pairwise
from support.survey_cases import (
    LEAST,
    MAKES,
    PLENTY,
    SIZES,
    Answers,
    Make,
    answers_to,
    check,
    expected,
    made,
    some_selects,
    spread,
    stream,
    take_sample,
    ties,
    whole,
)
from support.tensors import (
    BACKENDS,
    BF16,
    CPUS,
    DTYPES,
    FP16,
    FP32,
    denormals_flushed,
    instruction_set,
    learned,
    siblings,
)

# --- sizes, dtypes, targets, backends ---


@pairwise(
    "backend, make, dtype, numel", BACKENDS, (spread, ties), DTYPES, SIZES, indirect=["backend"]
)
def test_sizes_and_dtypes(backend: str, make: Make, dtype: torch.dtype, numel: int) -> None:
    check(*made(make, numel, 3, dtype), backend)


@pytest.mark.parametrize("targets", [1, 2, 4, 5, 17, pytest.param(64, marks=pytest.mark.slow)])
def test_numbers_of_targets(backend: str, targets: int) -> None:
    check(*made(ties, 4097 if targets > 5 else 9001, targets, BF16, FP32, FP16), backend)


@pairwise(
    "cpu, make, max_bytes, threads",
    CPUS,
    MAKES,
    (LEAST, 1000, 1 << 20, 4 << 20, PLENTY),
    (1, 2, 3),
    indirect=["cpu"],
)
def test_threads_and_memory_change_nothing(
    cpu: str, make: Make, max_bytes: int, threads: int
) -> None:
    """With little memory the exact path is taken: scan, high bits, low bits, energies, and where ties are cut."""
    tensors, answers = made(make, 140_011, 3, FP32, topks=(0.0, 1e-5, 0.1, 0.5, 0.999, 1.0))
    for request, answer in answers:
        found = whole(tensors, request, threads, max_bytes)
        assert learned(found) == learned(answer), request
        if isinstance(request, float) and max_bytes in (LEAST, PLENTY):
            exact = max_bytes == LEAST and 0 < request < 1
            assert found.passes in ((4, 5) if exact else (1,))


@cache
def hard_answers(make: Pattern) -> Answers:
    return answers_to(pattern(make))


@pytest.mark.parametrize("make", PATTERNS, ids=lambda make: make.__name__)
def test_hard_scores(cpu: str, make: Pattern) -> None:
    """Denormals, outliers, overflows, one value everywhere, nothing but zeros."""
    tensors = pattern(make)
    for request, answer in hard_answers(make):
        for max_bytes in (LEAST, PLENTY) if isinstance(request, Magnitudes) else (PLENTY,):
            assert learned(whole(tensors, request, 2, max_bytes)) == learned(answer), request


def test_the_callers_floating_point_state_does_not_matter(cpu: str) -> None:
    tensors = [torch.randint(-9, 10, (5000,)).float() * 2.0**-149 for _ in range(3)]
    answers = answers_to(tensors)
    with denormals_flushed():
        check(tensors, answers)


_ordinary = (0.0, -0.0, 1.0, -1.0, 1.5)
_extreme = (2.0**-149, 2.0**-130, 1e-20, 1e19, 3e19, 3e38, -3e38, torch.inf, torch.nan)
_values = st.sampled_from((*_ordinary, *_extreme))


@given(data=st.data(), targets=st.integers(1, 5), numel=st.integers(1, 40))
def test_any_values(data: st.DataObject, targets: int, numel: int) -> None:
    row = st.lists(_values, min_size=numel, max_size=numel)
    tensors = [torch.tensor(data.draw(row)) for _ in range(targets + 1)]
    rank = st.integers(0, numel)
    ranks = tuple(data.draw(st.tuples(rank, rank, rank)) for _ in range(targets))
    exact = widen(tensors)
    selects = some_selects(exact.d)
    sums = (Norms(selects), Overlaps(selects), Gram(), Gram(of_inputs=True))
    for request in (Magnitudes(ranks), *sums):
        answer = learned(expected(tensors, request, exact))
        for isa in _cpu.available_isas():
            with instruction_set(isa):
                assert learned(whole(tensors, request)) == answer


# --- by hand ---


def test_cuts_at_the_ends(backend: str) -> None:
    target = torch.tensor([0.0, -2.0, 1.0, 2.0, -0.0, 1.0])
    one, two = (int(torch.tensor(x).view(torch.int32)) for x in (1.0, 2.0))
    request = Magnitudes(((0, 1, 2, 3, 4, 5, 6),))
    found = expect(MagnitudesResult, whole([torch.zeros(6), target], request, backend=backend))
    assert found.cuts == ((NONE, Cut(two, 1), Cut(two, 5), Cut(one, 2), ALL, ALL, ALL),)


def test_signs_of_products_count(backend: str) -> None:
    up, down = torch.ones(300), torch.full((300,), -1.0)
    down[:100] = 3.0
    result = expect(GramResult, whole([torch.zeros(300), up, down], Gram(), backend=backend))
    assert result.gram == ((300.0, 100.0), (100.0, 1100.0))


def test_what_is_not_finite_counts_as_nothing(backend: str) -> None:
    base, first, second = torch.zeros(600), torch.ones(600), torch.full((600,), 2.0)
    base[0], first[1], second[2:4] = torch.nan, torch.inf, -torch.inf
    tensors = [base, first, second]
    request = Magnitudes(((596, 595), (596, 595)))
    cuts = expect(MagnitudesResult, whole(tensors, request, backend=backend))
    one, two = (int(torch.tensor(x).view(torch.int32)) for x in (1.0, 2.0))
    assert cuts.cuts == ((ALL, Cut(one, 598)), (ALL, Cut(two, 598)))
    norms = expect(NormsResult, whole(tensors, Norms((None, None)), backend=backend))
    assert norms.norms == ((596.0, 596.0), (1192.0, 1192.0))
    gram = expect(GramResult, whole(tensors, Gram(), backend=backend))
    assert gram.gram == ((596.0, 1192.0), (1192.0, 2384.0))
    assert cuts.nonfinite == norms.nonfinite == gram.nonfinite == (1, 1, 2, 0)


# --- magnitudes ---


def test_one_read_is_the_rule(cpu: str) -> None:
    for tensors in (
        spread(300_000, 3, FP32),
        ties(300_000, 3, BF16),
        siblings(300_000, 3, rms=1e-4),
    ):
        for request in (Magnitudes(((60_000,),) * 3), Magnitudes(((270_000, 3000),) * 3)):
            assert whole(tensors, request).passes == 1


def test_the_exact_path_of_some_cuts_alone(cpu: str) -> None:
    """Little memory: the scan fails, and the passes are those of the cut that needs the most."""
    tensors = [torch.zeros(300_000), torch.ones(300_000), siblings(300_000, 1, FP32)[1]]
    for ranks, passes in (
        (((0,), (0,)), 1),  # nothing is sought
        (((300_000,), (300_000,)), 1),
        (((0,), (1000,)), 3),  # scan, high bits, low bits
        (((1000,), (1000,)), 5),  # and where the ties are cut
    ):
        found = whole(tensors, Magnitudes(ranks), 2, LEAST)
        assert learned(found) == learned(expected(tensors, Magnitudes(ranks)))
        assert found.passes == passes


@pytest.mark.parametrize("rank", [1, 2, 131_072, 131_073, 200_000, 299_999])
def test_one_score_everywhere(cpu: str, rank: int) -> None:
    tensors = [torch.zeros(300_000), torch.full((300_000,), -0.5)]
    for max_bytes in (LEAST, PLENTY):
        found = expect(MagnitudesResult, whole(tensors, Magnitudes(((rank,),)), 2, max_bytes))
        assert found.cuts == ((Cut(0x3F000000, rank - 1),),)


@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_as_many_as_are_not_zero(cpu: str, beside: int) -> None:
    """The sample tells of others, so that the bracket has no reason to begin at zero."""
    numel, k = 300_000, 60_000
    base, full = spread(numel, 1, FP32)
    base.zero_()
    sparse = full.clone()
    sparse[full.abs().argsort(descending=True)[k + beside :]] = 0
    request = Magnitudes(((k,),))
    surveyor = load_backend(cpu).surveyor(1, numel, request, 2, PLENTY)
    take_sample(surveyor, [base, full])
    found = expect(MagnitudesResult, stream(surveyor, [base, sparse], numel, sampled=None))
    assert learned(found) == learned(expected([base, sparse], request))
    [[cut]] = found.cuts
    assert (cut == Cut(0, -1)) == (beside <= 0)


@pytest.mark.parametrize("values", [3, 16, 33])
def test_masses_of_equals(cpu: str, values: int) -> None:
    """Cuts in the middle of a mass, and where one ends and the next begins."""
    each = 1 << 11
    g = torch.Generator().manual_seed(values)
    steps = torch.arange(1, values + 1).repeat_interleave(each)
    target = (steps.float() / 64)[torch.randperm(values * each, generator=g)]
    tensors = [torch.zeros_like(target), target]
    for mass in (1, values // 2, values - 1):
        for beside in (-each // 2, -2, -1, 0, 1, 2):
            request = Magnitudes(((mass * each + beside,),))
            found = whole(tensors, request, 2)
            assert learned(found) == learned(expected(tensors, request)) and found.passes == 1


# --- sums ---


def test_sums_are_near_those_of_fp64(backend: str) -> None:
    tensors = siblings(70_001, 3, FP32)
    exact = widen(tensors)
    selects = some_selects(exact.d)
    norms = expect(NormsResult, whole(tensors, Norms(selects), backend=backend)).norms
    for x, select, pair in zip(exact.d, selects, norms, strict=True):
        bound = quanta_bound(exponents_of(x))
        assert abs(pair[0] - float(x.double().abs().sum())) <= bound
        assert abs(pair[1] - float(selected(x, select).double().abs().sum())) <= bound
    for of_inputs, vectors in ((False, exact.d), (True, exact.inputs)):
        gram = expect(GramResult, whole(tensors, Gram(of_inputs), backend=backend)).gram
        for (i, v), (j, w) in itertools.product(enumerate(vectors), repeat=2):
            p = products(v, w)
            bound = quanta_bound(exponents_of(p)) + 2.0**-24 * float(p.double().abs().sum())
            assert abs(gram[i][j] - float(v.double() @ w.double())) <= 1.001 * bound


def test_a_block_of_the_largest_terms(cpu: str) -> None:
    """Sums at the end of what 32 bits hold."""
    most = torch.tensor(float.fromhex("0x1.fffffep0"))
    for sign in (1.0, -1.0):
        tensors = [torch.zeros(512), most.repeat(512), sign * torch.ones(512)]
        check(tensors, answers_to(tensors))
        assert expect(GramResult, whole(tensors, Gram())).gram[0][1] == sign * 1024.0
