"""Where the tensors of a group lie in a region of a device's memory, and in which pieces they get there and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ...backends.arrays import DType
from ...backends.results import SceResult
from ...methods.sce import Sce
from ...plan.job import Input, Job
from .regions import ALIGNMENT, aligned

T = TypeVar("T")


@dataclass(frozen=True)
class TensorRequest:
    """A tensor to merge: what is known of it, and for which values of select_topk it is surveyed now.

    `kept` is a survey that was made before, `params` what it means for the fuse, as the device has it; None
    and b"": the first of `topks` is the fuse's own. Other rules than SCE's have none of them: what their surveys
    say comes to the host at once.
    """

    job: Job
    topks: tuple[float, ...] = ()
    kept: SceResult | None = None
    params: bytes = b""


@dataclass(frozen=True)
class Task:
    """A tensor of a group: where in its region everything begins.

    `results` and `params` are one for every survey, in `request.topks`'s order, and one for a survey that was
    kept; `fuse` is the number of those that the fuse goes by.
    """

    request: TensorRequest
    inputs: tuple[int, ...]
    params: tuple[int, ...]
    results: tuple[int, ...]
    out: int

    @property
    def job(self) -> Job:
        return self.request.job

    @property
    def fuse(self) -> int:
        return len(self.request.topks) if self.request.kept else 0


@dataclass(frozen=True)
class Part(Generic[T]):
    """`nbytes` bytes of `item` from its byte `start` on, which lie at byte `at` of a chunk."""

    item: T
    start: int
    at: int
    nbytes: int


@dataclass(frozen=True)
class Chunk(Generic[T]):
    """A piece of a region that is copied at once; between its parts may be bytes that mean nothing."""

    start: int
    nbytes: int
    parts: tuple[Part[T], ...]


@dataclass(frozen=True)
class _Segment(Generic[T]):
    start: int
    nbytes: int
    item: T


class Layout:
    """A group of tensors in one region: inputs, parameters, results of surveys, outputs.

    What is copied in ends behind the results (they begin as zeros), what is copied out begins with them.
    """

    def __init__(
        self, requests: Sequence[TensorRequest], result_bytes: int, params_bytes: int
    ) -> None:
        self._end = 0
        self._in: list[_Segment[Input | bytes]] = []
        self._out: list[_Segment[Task | None]] = []
        inputs = [[self._read(x, request.job) for x in request.job.inputs] for request in requests]
        params = [self._params(request, params_bytes) for request in requests]
        self.results_start = self._end
        results = [self._results(request, result_bytes) for request in requests]
        self.results_bytes = self._end - self.results_start
        self._out.append(_Segment(self.results_start, self.results_bytes, None))
        tasks = []
        for request, *places in zip(requests, inputs, params, results, strict=True):
            inputs_at, params_at, results_at = map(tuple, places)
            task = Task(request, inputs_at, params_at, results_at, self._end)
            self._out.append(_Segment(self._end, request.job.output_bytes, task))
            self._add(request.job.output_bytes)
            tasks.append(task)
        self.tasks = tuple(tasks)

    @property
    def nbytes(self) -> int:
        """At least a byte: a group may be of empty tensors alone."""
        return max(self._end, 1)

    def chunks_in(self, most: int) -> Iterator[Chunk[Input | bytes]]:
        """What is copied to the device, `most` bytes at a time."""
        return _cut(self._in, most)

    def chunks_out(self, most: int) -> Iterator[Chunk[Task | None]]:
        """What is copied from there: the results of all surveys, an item called None, and the outputs."""
        return _cut(self._out, most)

    def _add(self, nbytes: int) -> int:
        start, self._end = self._end, self._end + aligned(nbytes)
        return start

    def _read(self, x: Input, job: Job) -> int:
        nbytes = job.numel * x.dtype.size
        self._in.append(_Segment(self._end, nbytes, x))
        return self._add(nbytes)

    def _params(self, request: TensorRequest, nbytes: int) -> list[int]:
        places = [self._add(nbytes) for _ in request.topks]
        if request.kept:
            self._in.append(_Segment(self._end, nbytes, request.params))
            places.append(self._add(nbytes))
        return places

    def _results(self, request: TensorRequest, nbytes: int) -> list[int]:
        places = []
        for _ in range(len(request.topks) + (request.kept is not None)):
            self._in.append(_Segment(self._end, nbytes, bytes(nbytes)))
            places.append(self._add(nbytes))
        return places


def footprint(job: Job, surveys: int, result_bytes: int, params_bytes: int) -> int:
    """The most bytes that `job` takes of a region, with so many surveys of it (SCE's) at once and one that was kept."""

    def tensor(dtype: DType) -> int:
        return aligned(job.numel * dtype.size)

    nbytes = sum(tensor(x.dtype) for x in job.inputs) + tensor(job.dtype)
    if isinstance(job.rule, Sce):
        nbytes += (surveys + 1) * (aligned(result_bytes) + aligned(params_bytes))
    return max(nbytes, ALIGNMENT)


def _cut(segments: Sequence[_Segment[T]], most: int) -> Iterator[Chunk[T]]:
    """Chunks of at most `most` bytes, a multiple of the alignment, that hold all of `segments` in order."""
    assert most % ALIGNMENT == 0
    parts: list[Part[T]] = []
    begin = end = segments[0].start
    for segment in segments:
        done = 0
        while done < segment.nbytes:
            at = segment.start + done
            if at - begin >= most:
                yield Chunk(begin, end - begin, tuple(parts))
                begin, parts = at, []
            count = min(segment.nbytes - done, begin + most - at)
            parts.append(Part(segment.item, done, at - begin, count))
            done += count
            end = at + count
    if parts:
        yield Chunk(begin, end - begin, tuple(parts))
