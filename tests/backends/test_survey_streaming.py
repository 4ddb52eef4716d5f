"""A survey of a tensor that comes in chunks, and what it does where the data defeat its one read."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

import pytest
import torch

from fuseo1_kernels import survey
from fuseo1_kernels.backends import _cpu
from fuseo1_kernels.backends.arrays import Array, Buffer
from fuseo1_kernels.backends.cpu import CpuBackend
from fuseo1_kernels.backends.interface import Surveyor
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import SceResult, SurveyResult
from fuseo1_kernels.errors import BackendError
from fuseo1_kernels.in_memory.ops import as_arrays
from support.tensors import BF16, FP16, FP32, learned, siblings

N = 140_011  # more than two segments of 65,536, odd
CHUNKS = (256, 4096, 4352, 65536, 1 << 20)
UNLIMITED = 1 << 40


def spread(numel: int = N) -> list[torch.Tensor]:
    """Scores nearly all different: one read is enough."""
    return siblings(numel, 3, FP32)


def ties(numel: int = N) -> list[torch.Tensor]:
    """Few different scores."""
    g = torch.Generator().manual_seed(1)
    return [torch.randint(-3, 4, (numel,), generator=g).bfloat16() for _ in range(4)]


def one_tie(numel: int = N) -> list[torch.Tensor]:
    """A single score, everywhere."""
    return [torch.full((numel,), x, dtype=FP16) for x in (0.0, 0.5, 1.0, 1.0)]


def broken(numel: int = N) -> list[torch.Tensor]:
    """NaN and infinities among few different scores."""
    tensors = ties(numel)
    for i, t in enumerate(tensors):
        t[i * 1009 :: 30_011] = (torch.nan, torch.inf)[i % 2]
    return tensors


def expected(tensors: list[torch.Tensor], topk: float) -> SurveyResult:
    return survey(tensors[0], tensors[1:], select_topk=topk, backend="reference")


def chunks(
    inputs: list[Array], size: int, order: random.Random | None = None
) -> Iterator[tuple[int, list[Array]]]:
    numel = inputs[0].numel
    starts = list(range(0, numel, size))
    if order:
        order.shuffle(starts)
    for start in starts:
        yield start, [a.part(start, min(size, numel - start)) for a in inputs]


def take_sample(surveyor: Surveyor, tensors: list[torch.Tensor]) -> int:
    """ReadAhead the runs that the surveyor asks for; how many it asked for."""
    starts, length = surveyor.sample_runs()
    if not starts:
        surveyor.sample([])
        return 0
    runs = [torch.cat([t[s : s + length] for s in starts]) for t in tensors]
    surveyor.sample(as_arrays(runs))
    return len(starts)


def stream(
    surveyor: Surveyor,
    tensors: list[torch.Tensor],
    size: int,
    order: random.Random | None = None,
    sampled: bool = True,
    begun: bool = False,
) -> SurveyResult:
    if sampled and not begun:
        take_sample(surveyor, tensors)
    elif not begun:
        surveyor.sample([])
    while not surveyor.done:
        for start, parts in chunks(as_arrays(tensors), size, order):
            surveyor.update(parts, start)
        surveyor.end_pass()
    return surveyor.result()


@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "unsampled"])
@pytest.mark.parametrize("make", [spread, ties, broken], ids=lambda make: make.__name__)
@pytest.mark.parametrize("topk", [0.0, 0.1, 0.5, 1.0])
def test_chunks_in_any_order(backend: str, make, topk: float, sampled: bool) -> None:  # type: ignore[no-untyped-def]
    tensors = make()
    whole = expected(tensors, topk)
    sizes = CHUNKS if backend == "cpu" else (4352, 65536)  # the reference only gathers them
    for size in sizes:
        for order in (None, random.Random(size)):
            surveyor = load_backend(backend).surveyor(3, N, topk, 2, 1 << 27)
            result = stream(surveyor, tensors, size, order, sampled)
            assert learned(result) == learned(whole), (size, order)
            assert result.passes == 1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(cpu: str, threads: int) -> None:
    for tensors in (spread(), ties(), one_tie()):
        for max_bytes in (0, 1 << 20, UNLIMITED):
            native = _cpu.Survey(3, N, 0.37, max_bytes)
            native.run(operands(tensors), threads)
            assert learned(SceResult(**native.result())) == learned(expected(tensors, 0.37))


@pytest.mark.parametrize("numel", [1, 255, 256, 257, 4097, 65537])
def test_every_length_of_the_last_chunk(backend: str, numel: int) -> None:
    tensors = spread(numel)
    for size in (256, 4352):
        surveyor = load_backend(backend).surveyor(3, numel, 0.5, 1, 1 << 27)
        assert learned(stream(surveyor, tensors, size)) == learned(expected(tensors, 0.5))


def test_an_empty_tensor(cpu: str) -> None:
    surveyor = load_backend(cpu).surveyor(2, 0, 0.5, 1, 1 << 20)
    assert surveyor.done
    assert surveyor.result() == SceResult(
        nonzero=-1,
        selected=0,
        threshold=0x7FFFFFFF,
        tie_limit=-1,
        passes=0,
        energy=(0.0, 0.0),
        nonfinite=(0, 0, 0, 0),
    )


# --- the exact path: what the one read cannot settle ---


def operands(tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    return [(a.address, a.dtype.abi) for a in as_arrays(tensors)]


def native_survey(tensors: list[torch.Tensor], topk: float, max_bytes: int) -> SurveyResult:
    native = _cpu.Survey(len(tensors) - 1, tensors[0].numel(), topk, max_bytes)
    native.run(operands(tensors), 2)
    return SceResult(**native.result())


@pytest.mark.parametrize("topk", [1e-5, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("limit", [0, 1000, 1 << 20, 2 << 20])
@pytest.mark.parametrize("make", [spread, ties, one_tie, broken], ids=lambda make: make.__name__)
def test_little_memory_leads_to_the_exact_path(  # type: ignore[no-untyped-def]
    cpu: str, make, limit: int, topk: float
) -> None:
    tensors = make()
    result = native_survey(tensors, topk, limit)
    assert learned(result) == learned(expected(tensors, topk))
    if limit == 0:
        assert result.passes in (4, 5)


def test_reads_of_the_tensor(cpu: str) -> None:
    for tensors in (spread(), ties(), one_tie()):
        assert native_survey(tensors, 0.3, UNLIMITED).passes == 1
        assert native_survey(tensors, 0.0, UNLIMITED).passes == 1
        assert native_survey(tensors, 1.0, 0).passes == 1
    assert native_survey(spread(), 0.3, 0).passes == 4  # scan, high bits, low bits, energies
    assert native_survey(one_tie(), 0.3, 0).passes == 5  # and where the ties are cut
    identical = [t.clone() for t in siblings(N, 1) for _ in range(2)][1:]
    assert native_survey(identical, 0.5, 0).selected == 0


@pytest.mark.parametrize("size", [256, 4352, 1 << 20])
def test_the_exact_path_in_chunks(cpu: str, size: int) -> None:
    for tensors in (ties(), one_tie(), broken()):
        for topk in (0.1, 0.6):
            surveyor = load_backend(cpu).surveyor(3, N, topk, 2, 0)  # the least it can do with
            result = stream(surveyor, tensors, size, random.Random(size))
            assert learned(result) == learned(expected(tensors, topk))


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_the_exact_path_in_chunks_without_a_sample(cpu: str, limit: int) -> None:
    for tensors in (spread(), ties(), one_tie(), broken()):
        native = _cpu.Survey(3, N, 0.4, limit)
        native.end_pass()
        while native.phase != _cpu.SURVEY_DONE:
            for start, parts in chunks(as_arrays(tensors), 4352, random.Random(1)):
                native.update([(a.address, a.dtype.abi) for a in parts], start, parts[0].numel, 2)
            native.end_pass()
        assert learned(SceResult(**native.result())) == learned(expected(tensors, 0.4))


def test_candidates_in_lent_memory(cpu: str) -> None:
    """One survey after the other, each finding there what the one before left."""
    room = Buffer(8 << 20)
    for tensors, topk in ((spread(), 0.3), (broken(), 0.6), (one_tie(), 0.1), (spread(), 0.9)):
        surveyor = load_backend(cpu).surveyor(3, N, topk, 2, 1 << 20, room)
        result = stream(surveyor, tensors, 4352, sampled=False)
        assert learned(result) == learned(expected(tensors, topk))
        assert result.passes == 1  # unsampled: all are candidates, more than 1 MiB of them
    assert any(room.view)


@pytest.mark.parametrize("nbytes", [0, 1, 300_000, 512 << 10, 700_000])
def test_lent_memory_that_is_too_small(cpu: str, nbytes: int) -> None:
    room = Buffer(nbytes + 4096)
    room.view[nbytes:] = b"\x5a" * 4096
    room.nbytes = nbytes
    surveyor = load_backend(cpu).surveyor(3, N, 0.3, 2, 0, room)
    result = stream(surveyor, spread(), 4352, sampled=False)
    assert learned(result) == learned(expected(spread(), 0.3))
    assert result.passes == 4
    assert bytes(room.view[nbytes:]) == b"\x5a" * 4096


def test_lent_memory_first_then_its_own(cpu: str) -> None:
    """Neither suffices alone for candidates that all elements are."""
    for own, lent, passes in ((4 << 20, 0, 4), (0, 2 << 20, 4), (4 << 20, 2 << 20, 1)):
        surveyor = load_backend(cpu).surveyor(3, N, 0.3, 2, own, Buffer(lent))
        result = stream(surveyor, spread(), 4352, sampled=False)
        assert learned(result) == learned(expected(spread(), 0.3))
        assert result.passes == passes


@pytest.mark.parametrize("sampled_are", ["low", "high", "zero"])
def test_data_that_deceive_the_sample(cpu: str, sampled_are: str) -> None:
    base, *targets = spread()
    starts, length = _cpu.Survey(3, N, 0.3, UNLIMITED).sample_runs()
    assert starts
    for s in starts:
        for t in targets:
            far = {"low": 1e-6, "high": 1e3, "zero": 0.0}[sampled_are]
            t[s : s + length] = base[s : s + length] + (t - base)[s : s + length] * far
    result = native_survey([base, *targets], 0.3, UNLIMITED)
    assert learned(result) == learned(expected([base, *targets], 0.3))
    assert result.passes == (1 if sampled_are == "zero" else 4)


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
    tensors = spread()
    native = _cpu.Survey(3, N, 0.3, UNLIMITED)
    starts, length = native.sample_runs()
    for s in starts:
        parts = [a.part(s, length) for a in as_arrays(tensors)]
        native.update([(a.address, a.dtype.abi) for a in parts], 0, length, 1)
    native.end_pass()
    native.update(operands(tensors), 0, N, 1)
    native.end_pass()
    result = SceResult(**native.result())
    assert learned(result) == learned(expected(tensors, 0.3)) and result.passes == 1


# --- rows that share their scale: a sampled run is one observation ---


@cache
def rows_of_scales(width: int) -> tuple[torch.Tensor, ...]:
    """4,096,000 elements whose rows differ widely in scale; half of the rows are the base's own."""
    g = torch.Generator().manual_seed(1)
    shape = (4_096_000 // width, width)
    scale = torch.exp(2 * torch.randn(shape[0], 1, generator=g)) * 1e-3
    scale *= torch.rand(shape[0], 1, generator=g) >= 0.5
    base = torch.randn(shape, generator=g) * 0.02
    tuned = [base + torch.randn(shape, generator=g) * scale for _ in range(2)]
    return tuple(t.flatten() for t in (base, *tuned))


@pytest.mark.parametrize("topk", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("width", [1024, 4096])
def test_rows_of_different_scales_are_read_once(cpu: str, width: int, topk: float) -> None:
    tensors = list(rows_of_scales(width))
    inputs, numel = as_arrays(tensors), tensors[0].numel()
    engine = load_backend(cpu)
    whole = engine.survey(inputs, topk, 2)
    surveyor = engine.surveyor(2, numel, topk, 2, 128 << 20)
    assert stream(surveyor, tensors, 1 << 20) == whole
    assert whole.passes == 1
    thinned = engine.surveyor(2, numel, topk, 2, 128 << 20)
    starts, length = thinned.sample_runs()
    thinned.sample(
        as_arrays([torch.cat([t[s : s + length] for s in starts[::5]]) for t in tensors])
    )
    assert stream(thinned, tensors, 1 << 20, begun=True) == whole
    exact = engine.survey(inputs, topk, 2, 1 << 20)
    assert exact.passes >= 4 and learned(exact) == learned(whole)


@pytest.mark.parametrize("kept", [1, 2, 7])
def test_a_sample_of_few_runs(cpu: str, kept: int) -> None:
    for tensors in (spread(), ties(), one_tie(), [torch.zeros(N)] * 4):
        surveyor = load_backend(cpu).surveyor(3, N, 0.3, 2, UNLIMITED)
        starts, length = surveyor.sample_runs()
        runs = [torch.cat([t[s : s + length] for s in starts[:kept]]) for t in tensors]
        surveyor.sample(as_arrays(runs))
        result = stream(surveyor, tensors, 1 << 16, begun=True)
        assert learned(result) == learned(expected(tensors, 0.3))


# --- misuse of the native module ends in an exception, never in a read out of bounds ---


def test_the_native_survey_refuses_what_the_contract_excludes(cpu: str) -> None:
    for arguments in (
        (0, 8, 0.5, 0),
        (65, 8, 0.5, 0),
        (1, -1, 0.5, 0),
        (1, 8, 1.01, 0),
        (1, 8, -0.01, 0),
        (1, 8, float("nan"), 0),
        (1, 8, 0.5, -1),
    ):
        with pytest.raises(ValueError, match="outside the contract"):
            _cpu.Survey(*arguments)
    tensors = siblings(1000, 2)
    native = _cpu.Survey(2, 1000, 0.5, 1 << 20)
    with pytest.raises(RuntimeError, match="not in this phase"):
        native.result()
    with pytest.raises(ValueError, match="outside the contract"):  # it wants no sample
        native.update(operands(tensors), 0, 256, 1)
    native.end_pass()
    for offset, count, threads in (
        (1, 256, 1),
        (-256, 256, 1),
        (0, 1001, 1),
        (768, 256, 1),
        (0, 255, 1),
        (0, -1, 1),
        (0, 256, 0),
    ):
        with pytest.raises(ValueError, match="outside the contract"):
            native.update(operands(tensors), offset, count, threads)
    with pytest.raises(ValueError, match="outside the contract"):
        native.update([(0, 0)] * 3, 0, 256, 1)
    with pytest.raises(ValueError, match="outside the contract"):
        native.update([(a, 3) for a, _ in operands(tensors)], 0, 256, 1)
    with pytest.raises(ValueError, match="wrong number of operands"):
        native.update(operands(tensors)[:2], 0, 256, 1)
    native.update(operands(tensors), 0, 1000, 1)
    native.end_pass()
    for call in (native.end_pass, lambda: native.update(operands(tensors), 0, 1000, 1)):
        with pytest.raises(RuntimeError, match="not in this phase"):
            call()
    assert native.result()["passes"] == 1


@pytest.mark.parametrize("changed", [2, 3, 4], ids=["LOW", "TIES", "ENERGY"])
def test_data_that_change_between_passes_are_an_error(cpu: str, changed: int) -> None:
    tensors = one_tie()
    native = _cpu.Survey(3, N, 0.3, 0)
    native.end_pass()
    for _ in range(changed):
        native.update(operands(tensors), 0, N, 2)
        native.end_pass()
    native.update(operands([torch.zeros_like(t) for t in tensors]), 0, N, 2)
    with pytest.raises(ValueError, match="outside the contract"):
        native.end_pass()


def test_the_native_fuse_refuses_what_the_contract_excludes(cpu: str) -> None:
    tensors = siblings(512, 2)
    out = torch.empty(512, dtype=BF16)
    params = {
        "weights": (1.0, 1.0), "shares": (), "elect": _cpu.ELECT_SUM, "divisor": 0.0, "floor_divisor": 0.0,
        "scale": 1.0, "base_scale": 1.0, "selects": (), "masked": False, "threshold": 0, "tie_limit": -1,
    }  # fmt: skip
    good = {
        "operands": operands(tensors), "params": _cpu.FuseParams(**params), "offset": 0, "count": 512,
        "out": out.data_ptr(), "out_dtype": 0, "threads": 1,
    }  # fmt: skip
    assert _cpu.fuse(**good) == 0
    for wrong in ({"shares": (1.0,)}, {"selects": (_cpu.Select(),)}):
        with pytest.raises(ValueError, match="wrong number of shares or selections"):
            _cpu.FuseParams(**{**params, **wrong})
    for bad in (
        {"params": _cpu.FuseParams(**{**params, "weights": (1.0,)})},
        {"offset": 1},
        {"offset": -256},
        {"count": -1},
        {"out_dtype": 3},
        {"out": 0},
        {"threads": 0},
        {"operands": [(0, 0)] * 3},
    ):
        with pytest.raises(ValueError):
            _cpu.fuse(**{**good, **bad})


def test_the_cpu_backend_checks_lengths(cpu: str) -> None:
    engine = CpuBackend()
    unequal = as_arrays(siblings(300, 2))
    unequal[1] = unequal[1].part(0, 299)
    with pytest.raises(BackendError, match="same number of elements"):
        engine.survey(unequal, 0.5, 1)
