"""The surveys of magnitudes, norms and Gram matrices, against oracles of their own (survey_oracle.py)."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from hard_scores import PATTERNS, pattern
from hypothesis import given
from hypothesis import strategies as st
from survey_oracle import (
    Widened,
    cut_after,
    exponents_of,
    gram_matrix,
    norm_pair,
    products,
    quanta_bound,
    selected,
    widen,
)
from tensors import (
    BF16,
    DTYPES,
    FP16,
    FP32,
    bits,
    denormals_flushed,
    instruction_set,
    learned,
    siblings,
)

from fuseo1_kernels import _cpu
from fuseo1_kernels.arrays import Buffer
from fuseo1_kernels.backends import FileRange, Surveyor, SurveyResult, load_backend
from fuseo1_kernels.backends.requests import (
    NOTHING,
    Band,
    Clamp,
    Cut,
    Draw,
    Gram,
    Magnitudes,
    Norms,
    Request,
    Select,
)
from fuseo1_kernels.errors import BackendError
from fuseo1_kernels.ops import as_arrays

Make = Callable[..., list[torch.Tensor]]

SIZES = (0, 1, 255, 256, 257, 4097, 70_000, 300_000)
LEAST, PLENTY = 0, 128 << 20


def spread(
    numel: int, targets: int, dtypes: torch.dtype | Sequence[torch.dtype]
) -> list[torch.Tensor]:
    return siblings(numel, targets, dtypes)


def ties(
    numel: int, targets: int, dtypes: torch.dtype | Sequence[torch.dtype]
) -> list[torch.Tensor]:
    """Seven values, zeros among them, NaN, infinities, and differences that overflow."""
    g = torch.Generator().manual_seed(numel + targets)
    dealt = itertools.cycle([dtypes] if isinstance(dtypes, torch.dtype) else dtypes)
    kinds = [next(dealt) for _ in range(targets + 1)]
    tensors = [torch.randint(-3, 4, (numel,), generator=g).to(kind) for kind in kinds]
    for i, t in enumerate(tensors):
        t[i * 101 :: 3001] = (torch.nan, torch.inf, -torch.inf)[i % 3]
    tensors[0][77::5003], tensors[1][77::5003] = -3e38, 3e38
    return tensors


def ranks_of(numel: int, targets: int, seed: int = 0) -> tuple[tuple[int, int], ...]:
    choose = random.Random(numel * 65 + targets + seed)
    of = (0, 1, numel // 5, numel // 2, numel - numel // 10, numel)
    return tuple((choose.choice(of), choose.choice(of)) for _ in range(targets))


def some_selects(d: Sequence[torch.Tensor]) -> tuple[Select, ...]:
    """Every kind in turn."""

    def kind(i: int, x: torch.Tensor) -> Select:
        band = Band(cut_after(x, x.numel() // 3), cut_after(x, x.numel() // 50))
        return (band, Draw(0x0123456789ABCDEF + i, 0x60000000), Clamp(1e-3), None)[i % 4]

    return tuple(kind(i, x) for i, x in enumerate(d))


def expected(
    tensors: Sequence[torch.Tensor], request: Request, exact: Widened | None = None
) -> SurveyResult:
    exact = exact or widen(tensors)
    found = SurveyResult(-1, -1, NOTHING, -1, 1, (), exact.nonfinite)
    fields = {**vars(found)}
    if isinstance(request, Magnitudes):
        fields["cuts"] = tuple(
            tuple(cut_after(x, rank) for rank in ranks)
            for x, ranks in zip(exact.d, request.ranks, strict=True)
        )
    elif isinstance(request, Norms):
        fields["norms"] = tuple(
            norm_pair(x, select) for x, select in zip(exact.d, request.selects, strict=True)
        )
    elif isinstance(request, Gram):
        fields["gram"] = gram_matrix(exact.inputs if request.of_inputs else exact.d)
    return SurveyResult(**fields)


def requests_of(tensors: Sequence[torch.Tensor], exact: Widened) -> list[Request]:
    targets = len(tensors) - 1
    return [
        Magnitudes(ranks_of(tensors[0].numel(), targets)),
        Norms(some_selects(exact.d)),
        Gram(),
        Gram(of_inputs=True),
    ]


def whole(
    tensors: Sequence[torch.Tensor], request: Request, threads: int = 2, max_bytes: int = PLENTY
) -> SurveyResult:
    return load_backend("cpu").survey(as_arrays(tensors), request, threads, max_bytes)


Answers = list[tuple[Request, SurveyResult]]


def answers_to(tensors: Sequence[torch.Tensor]) -> Answers:
    exact = widen(tensors)
    return [(r, expected(tensors, r, exact)) for r in requests_of(tensors, exact)]


@cache
def made(
    make: Make, numel: int, targets: int, *dtypes: torch.dtype
) -> tuple[list[torch.Tensor], Answers]:
    tensors = make(numel, targets, dtypes)
    return tensors, answers_to(tensors)


def check(tensors: Sequence[torch.Tensor], answers: Answers) -> None:
    for request, answer in answers:
        assert learned(whole(tensors, request)) == learned(answer), request


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


# --- chunks and files ---


def stream(
    surveyor: Surveyor, tensors: Sequence[torch.Tensor], size: int, sampled: bool, seed: int
) -> SurveyResult:
    starts, length = surveyor.sample_runs()
    runs = [torch.cat([t[s : s + length] for s in starts]) for t in tensors] if starts else []
    surveyor.sample(as_arrays(runs) if sampled and runs else [])
    inputs, numel = as_arrays(tensors), tensors[0].numel()
    while not surveyor.done:
        offsets = list(range(0, numel, size))
        random.Random(seed).shuffle(offsets)
        for at in offsets:
            surveyor.update([a.part(at, min(size, numel - at)) for a in inputs], at)
        surveyor.end_pass()
    return surveyor.result()


@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "unsampled"])
@pytest.mark.parametrize("make", [spread, ties], ids=lambda make: make.__name__)
def test_chunks_in_any_order(cpu: str, make: Make, sampled: bool) -> None:
    tensors, answers = made(make, 140_011, 3, BF16, FP16)
    for request, answer in answers:
        for size, max_bytes in itertools.product((4352, 65536, 1 << 20), (LEAST, PLENTY)):
            surveyor = load_backend("cpu").surveyor(3, 140_011, request, 2, max_bytes)
            assert learned(stream(surveyor, tensors, size, sampled, size)) == learned(answer)


def test_candidates_in_lent_memory(cpu: str) -> None:
    room = Buffer(8 << 20)
    request = Magnitudes(((60_000, 100),) * 3)
    for make in (spread, ties, spread):
        tensors = make(140_011, 3, FP32)
        surveyor = load_backend("cpu").surveyor(3, 140_011, request, 2, 1 << 20, room)
        result = stream(surveyor, tensors, 4352, True, 0)
        assert learned(result) == learned(expected(tensors, request)) and result.passes == 1
    assert any(room.view)


@pytest.mark.parametrize("nbytes", [0, 1, 300_000, 700_000])
def test_lent_memory_that_is_too_small(cpu: str, nbytes: int) -> None:
    room = Buffer(nbytes + 4096)
    room.view[nbytes:] = b"\x5a" * 4096
    room.nbytes = nbytes
    tensors, request = spread(140_011, 3, FP32), Magnitudes(((60_000,),) * 3)
    surveyor = load_backend("cpu").surveyor(3, 140_011, request, 2, LEAST, room)
    assert learned(stream(surveyor, tensors, 4352, False, 0)) == learned(expected(tensors, request))
    assert bytes(room.view[nbytes:]) == b"\x5a" * 4096


def test_lent_memory_first_then_its_own(cpu: str) -> None:
    """Neither suffices alone for candidates that all elements are."""
    tensors, request = spread(140_011, 3, FP32), Magnitudes(((60_000,),) * 3)
    for own, lent, passes in ((2 << 20, 0, 3), (0, 600_000, 3), (2 << 20, 600_000, 1)):
        surveyor = load_backend("cpu").surveyor(3, 140_011, request, 2, own, Buffer(lent))
        result = stream(surveyor, tensors, 4352, False, 0)
        assert learned(result) == learned(expected(tensors, request))
        assert result.passes == passes


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Callable[[Sequence[torch.Tensor]], list[FileRange]]]:
    opened: list[int] = []

    def store(tensors: Sequence[torch.Tensor]) -> list[FileRange]:
        ranges = []
        for i, (tensor, array) in enumerate(zip(tensors, as_arrays(tensors), strict=True)):
            path = tmp_path / str(i)
            path.write_bytes(b"\0" * 8 + bits(tensor).numpy().tobytes())
            opened.append(os.open(path, os.O_RDONLY))
            ranges.append(FileRange(opened[-1], 8, array.dtype))
        return ranges

    yield store
    for fd in opened:
        os.close(fd)


def test_files(cpu: str, files: Callable[[Sequence[torch.Tensor]], list[FileRange]]) -> None:
    tensors, answers = made(ties, 300_000, 3, BF16, FP32)
    ranges, scratch = files(tensors), Buffer(1 << 20)
    for (request, answer), max_bytes in itertools.product(answers, (LEAST, PLENTY)):
        surveyor = load_backend("cpu").surveyor(3, 300_000, request, 2, max_bytes)
        surveyor.sample_files(ranges, 100, scratch)
        while not surveyor.done:
            for at in (0, 131_072):
                surveyor.update_files(ranges, at, (131_072, 168_928)[at > 0], scratch)
            surveyor.end_pass()
        assert learned(surveyor.result()) == learned(answer)


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
