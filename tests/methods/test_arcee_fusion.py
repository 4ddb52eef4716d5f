"""Arcee Fusion: divergences of rows, |d| scored by rows, and the whole rule, beside float64 and across kernels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels import merge_tensors
from fuseo1_kernels.backends.arrays import Buffer
from fuseo1_kernels.backends.contract import (
    NONE,
    Band,
    Cut,
    Divergences,
    FuseParams,
    Magnitudes,
    Norms,
    Request,
    RowFactors,
)
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import SurveyResult
from fuseo1_kernels.in_memory.ops import as_array, as_arrays
from fuseo1_kernels.methods.arcee_fusion import ArceeFusion, _reaching
from support.file_ranges import stored
from support.survey_cases import LEAST, PLENTY, stream, stream_files, whole
from support.tensors import (
    BF16,
    DTYPES,
    FP16,
    FP32,
    denormals_flushed,
    learned,
    siblings,
    wild,
)

ROWS = ((64, 48), (1, 1), (9, 1), (1, 255), (1, 20_001), (200, 401), (41, 8), (5, 1000))


def surveyed(
    backend: str, tensors: Sequence[torch.Tensor], request: Request, threads: int = 2
) -> Any:
    """A result of the type that answers the request."""
    return whole(tensors, request, threads, backend=backend)


def fp32(raw: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=FP32)


def divergences(backend: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One a row."""
    row = tensors[0].shape[-1]
    return fp32(surveyed(backend, tensors, Divergences(row)).divergences)


def in_float64(base: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The same by torch's softmax and log."""
    p, q = (torch.softmax(x.double(), dim=-1) + 1e-8 for x in (target, base))
    return (p * torch.log(p / q)).sum(dim=-1)


# --- divergences ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_divergences_are_those_of_float64(
    backend: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    tensors = siblings(shape, 1, dtype)
    found, exact = divergences(backend, tensors), in_float64(*tensors)
    # fp32's rounding, and fp64's of shares that are at least 1e-8.
    assert torch.allclose(found.double(), exact, rtol=1e-6, atol=1e-15)


def test_divergences_of_rows_far_apart(backend: str) -> None:
    """Shares from 1 to 0: exponentials that vanish, quotients up to 1e8."""
    g = torch.Generator().manual_seed(1)
    tensors = [torch.randn((12, 300), generator=g) * scale for scale in (300.0, 1e6)]
    found, exact = divergences(backend, tensors), in_float64(*tensors)
    assert float(exact.min()) > 1
    assert torch.allclose(found.double(), exact, rtol=1e-6)


def test_what_is_not_finite_is_left_out(backend: str) -> None:
    base, target = siblings((4, 50), 1, FP32)
    without = [torch.cat([x[:, :7], x[:, 8:49]], dim=1) for x in (base, target)]
    base[0, 7], target[1:3, 7], target[0, 49], target[1, 49] = torch.nan, torch.inf, torch.inf, 3e38
    base[1, 49], base[2, 49], base[3, 7], target[3, 49] = -3e38, -torch.inf, torch.nan, torch.nan
    result = surveyed(backend, [base, target], Divergences(50))
    assert result.nonfinite == (3, 4, 1)
    exact = in_float64(*without)
    assert torch.allclose(fp32(result.divergences).double(), exact, rtol=1e-6, atol=1e-15)


def test_rows_that_say_nothing(backend: str) -> None:
    base, target = siblings((3, 40), 1, FP32)
    target[0], base[1], target[2, :] = base[0], torch.nan, torch.inf
    result = surveyed(backend, [base, target], Divergences(40))
    assert fp32(result.divergences).tolist() == [0.0, 0.0, 0.0]
    assert surveyed(backend, [torch.empty(0)] * 2, Divergences(7)).divergences == b""


@cache
def diverging(
    shape: tuple[int, int], dtype: torch.dtype
) -> list[tuple[list[torch.Tensor], SurveyResult]]:
    """Tensors, and what the reference finds."""
    pairs = wild(shape, dtype), siblings(shape, 1, [dtype, FP16])
    return [(pair, surveyed("reference", pair, Divergences(shape[1]))) for pair in pairs]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_every_instruction_set_finds_the_same_divergences(
    cpu: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    for tensors, expected in diverging(shape, dtype):
        for threads in (1, 3):
            assert surveyed("cpu", tensors, Divergences(shape[1]), threads) == expected
        with denormals_flushed():
            assert surveyed("cpu", tensors, Divergences(shape[1])) == expected


# --- |d| by rows ---


def requests_of(tensors: Sequence[torch.Tensor]) -> list[Request]:
    numel, row = tensors[0].numel(), tensors[0].shape[-1]
    rows = RowFactors(row, surveyed("reference", tensors, Divergences(row)).divergences)
    ranks = sorted({0, 1, numel // 4, numel // 2, numel - numel // 4, numel - 1, numel})
    cuts = surveyed("reference", tensors, Magnitudes((tuple(ranks),), rows)).cuts[0]
    bands = [Band(keep, drop, rows=rows) for keep in cuts[2:5] for drop in (NONE, cuts[1])]
    return [
        Divergences(row),
        Magnitudes((tuple(ranks),), rows),
        *(Norms((band,)) for band in bands),
    ]


@cache
def made(
    shape: tuple[int, int], is_wild: bool
) -> tuple[list[torch.Tensor], list[tuple[Request, dict[str, Any]]]]:
    """Tensors, and what the reference makes of every request."""
    tensors = wild(shape, FP32) if is_wild else siblings(shape, 1, BF16)
    asked = requests_of(tensors)
    return tensors, [(r, learned(surveyed("reference", tensors, r))) for r in asked]


def test_a_cut_is_of_scores(backend: str) -> None:
    tensors = siblings((300, 401), 1, FP32)
    rows = RowFactors(401, surveyed(backend, tensors, Divergences(401)).divergences)
    scores = ((tensors[1] - tensors[0]).abs() * fp32(rows.factors)[:, None]).flatten()
    descending = scores.sort(descending=True).values
    ranks = (1, 700, 90_000, 120_300)
    (cuts,) = surveyed(backend, tensors, Magnitudes((ranks,), rows)).cuts
    for rank, cut in zip(ranks, cuts, strict=True):
        assert cut.threshold == int(descending[rank - 1].view(torch.int32))


def test_the_least_score_that_is_not_0(backend: str) -> None:
    """Of as many as are not 0 it is told; of more it is 0."""
    base, target = torch.zeros(2, 4), torch.tensor([[3.0, 0, 1, 2], [1, 9, 0, 1]])
    rows = RowFactors(4, torch.tensor([2.0, 0.0]).numpy().tobytes())
    (cuts,) = surveyed(backend, [base, target], Magnitudes(((0, 2, 3, 4, 8),), rows)).cuts
    two, four = (int(torch.tensor(x).view(torch.int32)) for x in (2.0, 4.0))
    assert cuts == (NONE, Cut(four, 7), Cut(two, 7), Cut(0, -1), Cut(0, -1))


def test_scores_beyond_fp32(backend: str) -> None:
    """They are the largest number; what is not finite is kept anyway."""
    base, target = torch.zeros(2, 3), torch.tensor([[3e38, 1, -2e38], [torch.inf, 5.0, 0.5]])
    rows = RowFactors(3, torch.tensor([18.0, 0.25]).numpy().tobytes())
    (cuts,) = surveyed(backend, [base, target], Magnitudes(((2, 3),), rows)).cuts
    assert cuts[0] == Cut(0x7F7FFFFF, 5) and cuts[1].threshold == 0x41900000
    params = FuseParams((1.0,), elect="none", divisor=1.0, selects=(Band(cuts[0], rows=rows),))
    out = torch.empty(6)
    inputs = as_arrays([base, target])
    assert load_backend(backend).fuse(inputs, params, as_array(out), 0, 1) == 1
    assert out[3].isnan()  # what is infinite makes NaN, as ever
    assert torch.equal(
        out[[0, 1, 2, 4, 5]], target.flatten()[[0, 1, 2, 4, 5]] * torch.tensor([1, 0, 1, 0, 0])
    )


@pytest.mark.parametrize("shape", [(400, 401), (1, 4097), (5000, 1)], ids=str)
def test_every_instruction_set_scores_alike(cpu: str, shape: tuple[int, int]) -> None:
    for tensors, answers in (made(shape, True), made(shape, False)):
        for request, expected in answers:
            for threads, most in itertools.product((1, 3), (LEAST, PLENTY)):
                found = whole(tensors, request, threads, most)
                assert learned(found) == expected, request
                assert found.passes == 1 or most == LEAST


# --- chunks and files ---


@pytest.mark.parametrize("shape", [(400, 401), (1, 70_011)], ids=str)
def test_chunks_in_any_order(cpu: str, shape: tuple[int, int]) -> None:
    """Rows lie across them, one across all of them."""
    tensors, answers = made(shape, True)
    flat = [t.flatten() for t in tensors]
    for request, expected in answers[:3]:
        for size, sampled in itertools.product((256, 4352, 65536), (False, True)):
            surveyor = load_backend("cpu").surveyor(1, flat[0].numel(), request, 2, PLENTY)
            assert learned(stream(surveyor, flat, size, sampled)) == expected


def test_files(backend: str, tmp_path: Path) -> None:
    tensors = siblings((330, 401), 1, [BF16, FP32])
    scratch, used, numel = Buffer(1 << 18), load_backend(backend), 330 * 401
    with stored(tmp_path, tensors) as files:
        for request in requests_of(tensors)[:3]:
            surveyor = used.surveyor(1, numel, request, 2, PLENTY)
            found = stream_files(surveyor, files, (0, 65_536), scratch)
            assert learned(found) == learned(surveyed("reference", tensors, request))
            assert found.passes == 1  # its sample is of rows that it knows
        rule, results = ArceeFusion(numel, 401), list[SurveyResult]()
        while (wanted := rule.request(results)) is not None:
            results.append(surveyed("reference", tensors, wanted))
        expected = merged("reference", tensors).view(-1)
        for start, count in ((0, 65_536), (65_536, 1280), (66_816, 65_514)):
            out = torch.empty(count)
            used.fuse_files(files, rule.params(results), as_array(out), start, 2, scratch)
            assert torch.equal(out, expected[start : start + count])


# --- the rule ---


def merged(
    backend: str, tensors: Sequence[torch.Tensor], threads: int | None = None
) -> torch.Tensor:
    return merge_tensors(tensors, "arcee_fusion", base_index=0, backend=backend, threads=threads)


def threshold(importance: torch.Tensor) -> float:
    ascending = importance.flatten().sort().values
    q1, median, q3 = (float(ascending[(ascending.numel() - 1) * i // 4]) for i in (1, 2, 3))
    return median + 1.5 * (q3 - q1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_model_where_it_matters(backend: str, dtype: torch.dtype) -> None:
    """All but elements so near the threshold that fp32's rounding decides."""
    base, target = siblings((90, 401), 1, dtype)
    importance = (target.double() - base).abs() * in_float64(base, target)[:, None]
    least = threshold(importance)
    found = merged(backend, [base, target])
    expected = torch.where(importance >= least, target, base)
    near = (importance / least - 1).abs() < 1e-6
    assert torch.equal(found[~near], expected[~near]) and int(near.sum()) < 10
    assert 0.01 < float((found != base).double().mean()) < 0.2


def test_small_tensors(backend: str) -> None:
    for numel, zeros in itertools.product(range(7), (0, 1, 2, 7)):
        base, target = siblings((numel,), 1, FP32, seed=numel)
        target[:zeros] = base[:zeros]
        found = merged(backend, [base, target])
        if numel:
            importance = (target - base).abs() * divergences(backend, [base[None], target[None]])
            base = torch.where(importance.double() >= threshold(importance), target, base)
        assert torch.equal(found, base), (numel, zeros)


@pytest.mark.parametrize(
    "shape",
    [(), (0, 3), (3, 0), (1,), (2, 3, 5), (1, 1, 1), (64, 48), (200, 401), (4097,)],
    ids=str,
)
def test_any_shape_and_dtypes(backend: str, shape: tuple[int, ...]) -> None:
    for dtypes in ((BF16,), (FP16,), (FP32,), (FP16, BF16), (FP32, BF16)):
        tensors = siblings(shape, 1, dtypes)
        expected = by_reference(shape, dtypes)
        for threads in (1, 3) if backend == "cpu" else (1,):
            found = merged(backend, tensors, threads)
            assert found.shape == shape and torch.equal(found, expected.to(found.dtype))


@cache
def by_reference(shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> torch.Tensor:
    """The merge of the same elements as a matrix of rows."""
    tensors = siblings(shape, 1, dtypes)
    if not tensors[0].numel():
        return torch.empty(shape)
    rows = [t.reshape(-1, shape[-1] if shape else 1) for t in tensors]
    return merged("reference", rows).view(shape)


def test_the_least_number_that_reaches_a_threshold() -> None:
    one = 0x3F800000
    assert [_reaching(x).threshold for x in (0.0, 1.0, 1 + 2**-23, 1 + 2**-24, 1 + 2**-40)] == [
        *(0, one, one + 1, one + 1, one + 1)
    ]
    largest = float.fromhex("0x1.fffffep127")
    assert _reaching(largest).threshold == 0x7F7FFFFF
    assert _reaching(1.0000001 * largest) == NONE
