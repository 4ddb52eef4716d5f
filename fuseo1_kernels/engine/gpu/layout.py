"""Lays out a group of tensors in a region of device memory, and cuts the region into chunks to copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ...backends.arrays import DType
from ...backends.results import SceResult
from ...methods.sce import Sce
from ...plan.inputs import Stored
from ...plan.job import Job
from .regions import ALIGNMENT, aligned

T = TypeVar("T")


@dataclass(frozen=True)
class TensorRequest:
    """A tensor to merge on a GPU. All fields but `job` are for SCE; other rules get their surveys from blocking ops.

    Attributes:
        job: the tensor.
        topks: values of select_topk to survey. If `kept` is None, the first is the merge's own.
        kept: a survey from the cache, or None.
        params: the parameters of fuse that follow from `kept`, as the backend packs them; else empty.
    """

    job: Job
    topks: tuple[float, ...] = ()
    kept: SceResult | None = None
    params: bytes = b""


@dataclass(frozen=True)
class Task:
    """The byte offsets of one tensor in its group's region.

    Attributes:
        request: the tensor.
        inputs: offset of each input.
        params, results: offsets for every survey: those of `request.topks` in order, then a kept one.
        out: offset of the output.
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
        """Index in `params` and `results` of the survey that fuse uses."""
        return len(self.request.topks) if self.request.kept else 0


@dataclass(frozen=True)
class Part(Generic[T]):
    """Bytes [start, start + nbytes) of `item`, at offset `at` of a chunk."""

    item: T
    start: int
    at: int
    nbytes: int


@dataclass(frozen=True)
class Chunk(Generic[T]):
    """Bytes [start, start + nbytes) of a region, copied at once. Bytes between its parts are padding."""

    start: int
    nbytes: int
    parts: tuple[Part[T], ...]


@dataclass(frozen=True)
class _Segment(Generic[T]):
    start: int
    nbytes: int
    item: T


class Layout:
    """A group of tensors in one region, in this order: inputs, parameters, results of surveys, outputs.

    Everything up to the results is copied in; results begin as zeros. Results and outputs are copied out.
    """

    def __init__(
        self, requests: Sequence[TensorRequest], result_bytes: int, params_bytes: int
    ) -> None:
        self._end = 0
        self._in: list[_Segment[Stored | bytes]] = []
        self._out: list[_Segment[Task | None]] = []
        inputs = [[self._read(x, request.job) for x in request.job.stored] for request in requests]
        params = [self._params(request, params_bytes) for request in requests]
        self.results_start = self._end
        results = [self._results(request, result_bytes) for request in requests]
        self.results_bytes = self._end - self.results_start
        self._out.append(_Segment(self.results_start, self.results_bytes, None))
        tasks = []
        for request, *offsets in zip(requests, inputs, params, results, strict=True):
            inputs_at, params_at, results_at = map(tuple, offsets)
            task = Task(request, inputs_at, params_at, results_at, self._end)
            self._out.append(_Segment(self._end, request.job.output_bytes, task))
            self._add(request.job.output_bytes)
            tasks.append(task)
        self.tasks = tuple(tasks)

    @property
    def nbytes(self) -> int:
        """Bytes of the region; at least 1, because all tensors of a group may be empty."""
        return max(self._end, 1)

    def chunks_in(self, most: int) -> Iterator[Chunk[Stored | bytes]]:
        """Yield the chunks to copy to the device, of at most `most` bytes."""
        return _cut(self._in, most)

    def chunks_out(self, most: int) -> Iterator[Chunk[Task | None]]:
        """Yield the chunks to copy from the device, of at most `most` bytes. The item of the survey results is None."""
        return _cut(self._out, most)

    def _add(self, nbytes: int) -> int:
        """Reserve `nbytes` bytes; return their offset."""
        start, self._end = self._end, self._end + aligned(nbytes)
        return start

    def _read(self, x: Stored, job: Job) -> int:
        nbytes = job.numel * x.dtype.size
        self._in.append(_Segment(self._end, nbytes, x))
        return self._add(nbytes)

    def _params(self, request: TensorRequest, nbytes: int) -> list[int]:
        offsets = [self._add(nbytes) for _ in request.topks]
        if request.kept:
            self._in.append(_Segment(self._end, nbytes, request.params))
            offsets.append(self._add(nbytes))
        return offsets

    def _results(self, request: TensorRequest, nbytes: int) -> list[int]:
        offsets = []
        for _ in range(len(request.topks) + (request.kept is not None)):
            self._in.append(_Segment(self._end, nbytes, bytes(nbytes)))
            offsets.append(self._add(nbytes))
        return offsets


def footprint(job: Job, surveys: int, result_bytes: int, params_bytes: int) -> int:
    """Return the most bytes that `job` takes in a region, with `surveys` new surveys (SCE) and a kept one."""

    def tensor(dtype: DType) -> int:
        return aligned(job.numel * dtype.size)

    nbytes = sum(tensor(x.dtype) for x in job.inputs) + tensor(job.dtype)
    if isinstance(job.rule, Sce):
        nbytes += (surveys + 1) * (aligned(result_bytes) + aligned(params_bytes))
    return max(nbytes, ALIGNMENT)


def _cut(segments: Sequence[_Segment[T]], most: int) -> Iterator[Chunk[T]]:
    """Yield chunks of at most `most` bytes that hold all of `segments`, in order. `most` is a multiple of ALIGNMENT."""
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
