"""The surveys of magnitudes, norms and Gram matrices in chunks, from files, and in memory that is lent."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from fuseo1_kernels.backends.arrays import Buffer
from fuseo1_kernels.backends.contract import Magnitudes
from fuseo1_kernels.backends.interface import FileRange, Surveyor
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import SurveyResult
from fuseo1_kernels.in_memory.ops import as_arrays
from support.survey_cases import LEAST, PLENTY, Make, expected, made, spread, ties
from support.tensors import BF16, FP16, FP32, bits, learned


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
