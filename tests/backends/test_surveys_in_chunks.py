"""Surveys of tensors that come in chunks or from files, in memory of their own or lent, whatever the sample says."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from fuseo1_kernels.backends import _cpu
from fuseo1_kernels.backends.arrays import Buffer
from fuseo1_kernels.backends.contract import Magnitudes, Request
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import SceResult
from fuseo1_kernels.in_memory.ops import as_arrays
from support.file_ranges import stored
from support.pairwise import pairwise
from support.survey_cases import (
    LEAST,
    MAKES,
    PLENTY,
    Make,
    expected,
    made,
    one_tie,
    spread,
    stream,
    stream_files,
    take_sample,
    ties,
    whole,
)
from support.tensors import BACKENDS, BF16, CPUS, FP16, FP32, learned

N = 140_011  # more than two segments of 65,536, odd
UNLIMITED = 1 << 40
TOPKS = (0.0, 0.1, 0.5, 1.0)
CUTS = Magnitudes(((60_000, 100),) * 3)


@pairwise(
    "backend, make, sampled, max_bytes, size",
    BACKENDS,
    MAKES,
    (True, False),
    (LEAST, 1 << 20, PLENTY),
    (256, 4352, 65_536, 1 << 20),
    indirect=["backend"],
)
def test_chunks_in_any_order(
    backend: str, make: Make, sampled: bool, max_bytes: int, size: int
) -> None:
    tensors, answers = made(make, N, 3, BF16, FP16, topks=TOPKS)
    for request, answer in answers:
        surveyor = load_backend(backend).surveyor(3, N, request, 2, max_bytes)
        result = stream(surveyor, tensors, size, sampled)
        assert learned(result) == learned(answer), request
        assert result.passes == 1 or max_bytes < PLENTY


@pytest.mark.parametrize("numel", [1, 255, 256, 257, 4097, 65537])
def test_every_length_of_the_last_chunk(backend: str, numel: int) -> None:
    tensors, answers = made(spread, numel, 3, FP32, topks=(0.5,))
    for request, answer in answers:
        for size in (256, 4352):
            surveyor = load_backend(backend).surveyor(3, numel, request, 1, PLENTY)
            assert learned(stream(surveyor, tensors, size)) == learned(answer)


def test_an_empty_tensor(cpu: str) -> None:
    surveyor = load_backend(cpu).surveyor(2, 0, 0.5, 1, 1 << 20)
    assert surveyor.done
    assert surveyor.result() == SceResult(
        nonzero=-1, selected=0, threshold=0x7FFFFFFF, tie_limit=-1, passes=0,
        energy=(0.0, 0.0), nonfinite=(0, 0, 0, 0),
    )  # fmt: skip


def test_files(cpu: str, tmp_path: Path) -> None:
    tensors, answers = made(ties, 300_000, 3, BF16, FP32, topks=(0.3,))
    scratch = Buffer(1 << 20)
    with stored(tmp_path, tensors) as ranges:
        for (request, answer), max_bytes in [(a, m) for a in answers for m in (LEAST, PLENTY)]:
            surveyor = load_backend("cpu").surveyor(3, 300_000, request, 2, max_bytes)
            result = stream_files(surveyor, ranges, (0, 131_072), scratch)
            assert learned(result) == learned(answer)


# --- lent memory ---


@pytest.mark.parametrize("request_", [0.3, CUTS], ids=["scores", "magnitudes"])
def test_candidates_in_lent_memory(cpu: str, request_: Request) -> None:
    """One survey after the other, each finding there what the one before left."""
    room = Buffer(8 << 20)
    for make in (*MAKES, spread):
        tensors = make(N, 3, FP32)
        surveyor = load_backend("cpu").surveyor(3, N, request_, 2, 1 << 20, room)
        result = stream(surveyor, tensors, 4352, sampled=False)
        assert learned(result) == learned(expected(tensors, request_))
        assert result.passes == 1  # unsampled: all are candidates, more than 1 MiB of them
    assert any(room.view)


@pytest.mark.parametrize(
    ("request_", "passes"), [(0.3, 4), (CUTS, 3)], ids=["scores", "magnitudes"]
)
@pytest.mark.parametrize("nbytes", [0, 1, 300_000, 512 << 10, 700_000])
def test_lent_memory_that_is_too_small(
    cpu: str, nbytes: int, request_: Request, passes: int
) -> None:
    room = Buffer(nbytes + 4096)
    room.view[nbytes:] = b"\x5a" * 4096
    room.nbytes = nbytes
    tensors = spread(N, 3, FP32)
    surveyor = load_backend("cpu").surveyor(3, N, request_, 2, LEAST, room)
    result = stream(surveyor, tensors, 4352, sampled=False)
    assert learned(result) == learned(expected(tensors, request_)) and result.passes == passes
    assert bytes(room.view[nbytes:]) == b"\x5a" * 4096


@pytest.mark.parametrize(
    ("request_", "own", "lent", "exact"),
    [(0.3, 5 << 19, 2 << 20, 4), (Magnitudes(((60_000,),) * 3), 2 << 20, 600_000, 3)],
    ids=["scores", "magnitudes"],
)
def test_lent_memory_first_then_its_own(
    cpu: str, request_: Request, own: int, lent: int, exact: int
) -> None:
    """Neither suffices alone for candidates that all elements are."""
    tensors = spread(N, 3, FP32)
    for mine, given, passes in ((own, 0, exact), (0, lent, exact), (own, lent, 1)):
        surveyor = load_backend("cpu").surveyor(3, N, request_, 2, mine, Buffer(given))
        result = stream(surveyor, tensors, 4352, sampled=False)
        assert learned(result) == learned(expected(tensors, request_))
        assert result.passes == passes


# --- samples ---


@pytest.mark.parametrize(
    ("request_", "factor", "passes"),
    [(0.3, 1e-6, 4), (0.3, 1e3, 4), (0.3, 0.0, 1), (CUTS, 2.0**-10, 3)],
    ids=["low", "high", "zero", "magnitudes"],
)
def test_data_that_deceive_the_sample(
    cpu: str, request_: Request, factor: float, passes: int
) -> None:
    base, *targets = spread(N, 3, FP32)
    starts, length = load_backend("cpu").surveyor(3, N, request_, 1, UNLIMITED).sample_runs()
    assert starts
    for t in targets[:1] if isinstance(request_, Magnitudes) else targets:
        for s in starts:
            t[s : s + length] = base[s : s + length] + (t - base)[s : s + length] * factor
    result = whole([base, *targets], request_, max_bytes=UNLIMITED)
    assert learned(result) == learned(expected([base, *targets], request_))
    assert result.passes == passes


def test_the_sampled_runs(cpu: str) -> None:
    for numel in (1, 16_383, 16_384, 20_000, N, 10**7, 3 * 10**9):
        starts, length = _cpu.Survey(3, numel, 0.5, 0).sample_runs()
        assert length == (32 if numel < 1 << 20 else 256) and bool(starts) == (numel >= 16_384)
        assert all(s % length == 0 and 0 <= s <= numel - length for s in starts)
        assert len(set(starts)) == len(starts) and len(starts) * length <= max(1 << 16, numel >> 9)
    for topk in (0.0, 1.0):
        assert _cpu.Survey(3, N, topk, 0).sample_runs()[0] == []


@pytest.mark.parametrize("most", [1, 100, 1 << 20])
def test_a_thinned_sample(cpu: str, most: int) -> None:
    """Evenly, over all of the tensor."""
    surveyor = load_backend(cpu).surveyor(3, N, 0.3, 2, UNLIMITED)
    starts, length = surveyor.sample_runs()
    thinned = starts[:: -(-len(starts) // most)]
    assert 0 < len(thinned) <= most
    assert surveyor.sample_runs(most) == (thinned, length)


def test_a_sample_in_several_parts(cpu: str) -> None:
    tensors = spread(N, 3, FP32)
    native = _cpu.Survey(3, N, 0.3, UNLIMITED)
    starts, length = native.sample_runs()
    for s in starts:
        parts = [a.part(s, length) for a in as_arrays(tensors)]
        native.update([(a.address, a.dtype.abi) for a in parts], 0, length, 1)
    native.end_pass()
    native.update([(a.address, a.dtype.abi) for a in as_arrays(tensors)], 0, N, 1)
    native.end_pass()
    result = SceResult(**native.result())
    assert learned(result) == learned(expected(tensors, 0.3)) and result.passes == 1


@pytest.mark.parametrize("kept", [1, 2, 7])
def test_a_sample_of_few_runs(cpu: str, kept: int) -> None:
    zeros = [torch.zeros(N)] * 4
    for tensors in (spread(N, 3, FP32), ties(N, 3, BF16), one_tie(N, 3, FP16), zeros):
        surveyor = load_backend(cpu).surveyor(3, N, 0.3, 2, UNLIMITED)
        take_sample(surveyor, tensors, kept)
        result = stream(surveyor, tensors, 1 << 16, sampled=None)
        assert learned(result) == learned(expected(tensors, 0.3))


# --- rows that share their scale: a sampled run is one observation ---


@cache
def rows_of_scales(width: int) -> list[torch.Tensor]:
    """4,096,000 elements whose rows differ widely in scale; half of the rows are the base's own."""
    g = torch.Generator().manual_seed(1)
    shape = (4_096_000 // width, width)
    scale = torch.exp(2 * torch.randn(shape[0], 1, generator=g)) * 1e-3
    scale *= torch.rand(shape[0], 1, generator=g) >= 0.5
    base = torch.randn(shape, generator=g) * 0.02
    tuned = [base + torch.randn(shape, generator=g) * scale for _ in range(2)]
    return [t.flatten() for t in (base, *tuned)]


@pairwise("cpu, topk, width", CPUS, (0.1, 0.5, 0.9), (1024, 4096), together=1, indirect=["cpu"])
def test_rows_of_different_scales_are_read_once(cpu: str, width: int, topk: float) -> None:
    tensors = rows_of_scales(width)
    inputs, numel = as_arrays(tensors), tensors[0].numel()
    engine = load_backend(cpu)
    found = engine.survey(inputs, topk, 2)
    surveyor = engine.surveyor(2, numel, topk, 2, PLENTY)
    assert stream(surveyor, tensors, 1 << 20) == found
    assert found.passes == 1
    thinned = engine.surveyor(2, numel, topk, 2, PLENTY)
    starts, length = thinned.sample_runs()
    thinned.sample(
        as_arrays([torch.cat([t[s : s + length] for s in starts[::5]]) for t in tensors])
    )
    assert stream(thinned, tensors, 1 << 20, sampled=None) == found
    exact = engine.survey(inputs, topk, 2, 1 << 20)
    assert exact.passes >= 4 and learned(exact) == learned(found)
