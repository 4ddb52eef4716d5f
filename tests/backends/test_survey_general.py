"""The surveys of magnitudes, norms and Gram matrices, against oracles of their own (support/oracles/surveys.py)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuseo1_kernels.backends import _cpu
from fuseo1_kernels.backends.contract import Cut, Gram, Magnitudes, Norms
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.errors import BackendError
from fuseo1_kernels.in_memory.ops import as_arrays
from support.hard_scores import PATTERNS, pattern
from support.oracles.surveys import exponents_of, products, quanta_bound, selected, widen
from support.survey_cases import (
    LEAST,
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
    ties,
    whole,
)
from support.tensors import (
    BF16,
    DTYPES,
    FP16,
    FP32,
    denormals_flushed,
    instruction_set,
    learned,
    siblings,
)

# --- sizes, dtypes, targets, instruction sets ---


@pytest.mark.parametrize("make", [spread, ties], ids=lambda make: make.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numel", SIZES)
def test_sizes_and_dtypes(cpu: str, numel: int, dtype: torch.dtype, make: Make) -> None:
    check(*made(make, numel, 3, dtype))


@pytest.mark.parametrize("targets", [1, 2, 4, 5, 17, 64])
def test_numbers_of_targets(cpu: str, targets: int) -> None:
    check(*made(ties, 4097 if targets > 5 else 70_000, targets, BF16, FP32, FP16))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("max_bytes", [LEAST, 1 << 20, 4 << 20, PLENTY])
def test_threads_and_memory_change_nothing(cpu: str, max_bytes: int, threads: int) -> None:
    for make in (spread, ties):
        tensors, answers = made(make, 300_000, 3, BF16)
        request, answer = answers[0]
        assert learned(whole(tensors, request, threads, max_bytes)) == learned(answer)


@cache
def hard_answers(make: Callable[[torch.Generator], list[torch.Tensor]]) -> Answers:
    return answers_to(pattern(make))


@pytest.mark.parametrize("make", PATTERNS, ids=lambda make: make.__name__)
def test_hard_scores(cpu: str, make: Callable[[torch.Generator], list[torch.Tensor]]) -> None:
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
    for request in (Magnitudes(ranks), Norms(some_selects(exact.d)), Gram(), Gram(of_inputs=True)):
        answer = learned(expected(tensors, request, exact))
        for isa in _cpu.available_isas():
            with instruction_set(isa):
                assert learned(whole(tensors, request)) == answer


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
        found = whole(tensors, Magnitudes(((rank,),)), 2, max_bytes)
        assert found.cuts == ((Cut(0x3F000000, rank - 1),),)


def test_data_that_deceive_the_sample(cpu: str) -> None:
    base, *targets = spread(300_000, 2, FP32)
    request = Magnitudes(((60_000,), (60_000,)))
    starts, length = load_backend("cpu").surveyor(2, 300_000, request, 1, PLENTY).sample_runs()
    assert starts
    for s in starts:
        at = slice(s, s + length)
        targets[0][at] = base[at] + (targets[0][at] - base[at]) * 2.0**-10
    tensors = [base, *targets]
    found = whole(tensors, request)
    assert learned(found) == learned(expected(tensors, request)) and found.passes == 3


@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_as_many_as_are_not_zero(cpu: str, beside: int) -> None:
    """The sample tells of others, so that the bracket has no reason to begin at zero."""
    numel, k = 300_000, 60_000
    base, full = spread(numel, 1, FP32)
    base.zero_()
    order = full.abs().argsort(descending=True)
    sparse = full.clone()
    sparse[order[k + beside :]] = 0
    request = Magnitudes(((k,),))
    surveyor = load_backend(cpu).surveyor(1, numel, request, 2, PLENTY)
    starts, length = surveyor.sample_runs()
    surveyor.sample(
        as_arrays([torch.cat([t[s : s + length] for s in starts]) for t in (base, full)])
    )
    inputs = as_arrays([base, sparse])
    while not surveyor.done:
        surveyor.update(inputs, 0)
        surveyor.end_pass()
    assert learned(surveyor.result()) == learned(expected([base, sparse], request))
    [[cut]] = surveyor.result().cuts
    assert (cut == Cut(0, -1)) == (beside <= 0)


@pytest.mark.parametrize("values", [3, 16, 128])
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


@pytest.mark.parametrize("changed", [2, 3, 4], ids=["LOW", "TIES", "ENERGY"])
def test_data_that_change_between_passes_are_an_error(cpu: str, changed: int) -> None:
    ones = as_arrays([torch.zeros(70_000), torch.ones(70_000)])
    zeros = as_arrays([torch.zeros(70_000)] * 2)
    surveyor = load_backend("cpu").surveyor(1, 70_000, Magnitudes(((1000,),)), 2, LEAST)
    surveyor.sample([])
    for _ in range(changed):
        surveyor.update(ones, 0)
        surveyor.end_pass()
    surveyor.update(zeros, 0)
    with pytest.raises(ValueError, match="outside the contract"):
        surveyor.end_pass()


# --- sums ---


def test_sums_are_near_those_of_fp64(cpu: str) -> None:
    tensors = siblings(300_000, 3, FP32)
    exact = widen(tensors)
    selects = some_selects(exact.d)
    for x, select, pair in zip(exact.d, selects, whole(tensors, Norms(selects)).norms, strict=True):
        bound = quanta_bound(exponents_of(x))
        assert abs(pair[0] - float(x.double().abs().sum())) <= bound
        assert abs(pair[1] - float(selected(x, select).double().abs().sum())) <= bound
    for of_inputs, vectors in ((False, exact.d), (True, exact.inputs)):
        gram = whole(tensors, Gram(of_inputs)).gram
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
        assert whole(tensors, Gram()).gram[0][1] == sign * 1024.0


# --- misuse ---


def test_requests_that_do_not_fit(cpu: str) -> None:
    inputs = as_arrays(spread(300, 2, BF16))
    for request in (Magnitudes(((1,),)), Norms((None,) * 3)):
        with pytest.raises(BackendError, match="but there are 2"):
            load_backend("cpu").survey(inputs, request, 1)
    refused: tuple[Callable[[], object], ...] = (
        lambda: _cpu.Survey.magnitudes(8, [[-1]], 0),
        lambda: _cpu.Survey.magnitudes(8, [[]], 0),
        lambda: _cpu.Survey.magnitudes(8, [], 0),
        lambda: _cpu.Survey.magnitudes(8, [[1]] * 65, 0),
        lambda: _cpu.Survey.magnitudes(-1, [[1]], 0),
        lambda: _cpu.Survey.magnitudes(8, [[1]], -1),
        lambda: _cpu.Survey.norms(8, []),
        lambda: _cpu.Survey.norms(8, [_cpu.Select.bits(0)]),
        lambda: _cpu.Survey.norms(8, [_cpu.Select.clamp(-1.0)]),
        lambda: _cpu.Survey.gram(0, 8, False),
    )
    for native in refused:
        with pytest.raises(ValueError, match="outside the contract"):
            native()
    with pytest.raises(ValueError, match="not as many ranks"):
        _cpu.Survey.magnitudes(8, [[1], [1, 2]], 0)


def test_answers_to_other_questions_are_refused(cpu: str) -> None:
    survey = _cpu.Survey.gram(1, 8, False)
    with pytest.raises(RuntimeError, match="not in this phase"):
        survey.sums()
    inputs = [(a.address, a.dtype.abi) for a in as_arrays(spread(8, 1, FP32))]
    survey.run(inputs, 1)
    with pytest.raises(ValueError, match="outside the contract"):
        survey.cuts()
    sce = _cpu.Survey(1, 8, 0.5, 0)
    sce.run(inputs, 1)
    with pytest.raises(ValueError, match="outside the contract"):
        sce.sums()
