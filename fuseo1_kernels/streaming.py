"""One tensor from its files through survey and fuse to its file, within a worker's share of memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import xxhash

from .arrays import Array, Buffer
from .backends import (
    Backend,
    FileRange,
    FuseParams,
    InputUnreadable,
    Surveyor,
    SurveyResult,
)
from .checkpoint.journal import TensorRecord
from .checkpoint.source import unreadable
from .errors import CheckpointError, MergeError
from .plan import Job
from .schedule import READ_AHEAD, will_need
from .survey_cache import SurveyCache
from .weights import sce_params

# Elements merged between two looks at whether to stop; their output is written in one call.
_CHUNK = 1 << 20
_LEAST_CHUNK = 1 << 16
# Chunks begin at multiples of this, the kernels' block.
_BLOCK = 256
_ALIGN = 64
# Elements read at a time where a core's cache is no matter: a merge that is stopped ends after them.
_MOST_AT_ONCE = 32 << 20
# Runs of a sample: each is a read of its own.
_MOST_RUNS = 2048
# What a survey needs whatever the tensor: histograms, exponent sums, candidates of a small tensor.
_SURVEY_FLOOR = 4 << 20
# What a survey keeps, at most, of an element of each input.
_RECORD = 16


@dataclass(frozen=True)
class TensorReport:
    """What happened to one tensor: what the journal keeps of it, and the bytes that were read."""

    record: TensorRecord
    bytes_read: int


@dataclass(frozen=True)
class Memory:
    """A worker's memory in bytes: for inputs, for one chunk of output, for what a survey keeps."""

    inputs: int
    output: int
    survey: int

    @property
    def total(self) -> int:
        return self.inputs + self.output + self.survey


def plan_memory(jobs: Sequence[Job], max_bytes: int) -> Memory:
    """A worker's memory for any of `jobs`: at most `max_bytes`, and no more than the largest needs.

    Half is for the survey: of the largest tensors it must hold a part in a hundred, or they are read
    several times.
    """
    output = min(_CHUNK * 4, max_bytes // 4)
    largest = max((job.input_bytes + _ALIGN * len(job.inputs) for job in jobs), default=1)
    inputs = min(max_bytes // 2 - output, largest)
    most = _SURVEY_FLOOR + max((job.numel * _RECORD * len(job.inputs) for job in jobs), default=0)
    return Memory(inputs, output, min(max_bytes - inputs - output, most))


def memory_floor(job: Job) -> int:
    """The least bytes with which `job` can be merged."""
    return 4 * _LEAST_CHUNK * (job.element_bytes + 4) + _SURVEY_FLOOR


def fits(job: Job, memory: Memory) -> bool:
    """Whether a worker holds all inputs of `job` at once, so that they are read once."""
    return job.input_bytes + _ALIGN * len(job.inputs) <= memory.inputs


class Destination(Protocol):
    """Where merged bytes go; a Sink is one."""

    def write(self, name: str, start: int, view: memoryview) -> None: ...


class TensorMerger:
    """A worker: merges one tensor at a time in buffers of its own.

    `threads` is asked before every kernel call, `advance` is told of every byte read (once) or written,
    `stop` ends the work early. `surveys` is asked for surveys and given new ones.
    """

    def __init__(
        self,
        backend: Backend,
        destination: Destination,
        memory: Memory,
        *,
        threads: Callable[[], int],
        nonfinite: str,
        advance: Callable[[int], None],
        stop: threading.Event,
        surveys: SurveyCache | None = None,
    ) -> None:
        self._backend = backend
        self._destination = destination
        self._threads = threads
        self._nonfinite = nonfinite
        self._advance = advance
        self._stop = stop
        self._surveys = surveys
        self._memory = memory
        try:
            self._out, self._in = Buffer(memory.output), Buffer(memory.inputs)
        except OSError as error:
            raise MergeError(
                f"{memory.total >> 20} MiB of memory for a worker cannot be had ({error.strerror}); "
                "lower --max-memory or --threads"
            ) from error

    @property
    def scratch(self) -> memoryview:
        """The buffer for output: free between tensors."""
        return self._out.view

    def merge(self, job: Job, cached: bool = False) -> TensorReport:
        """Merge `job` and write the result; raises MergeError, naming tensor and model.

        `cached` says that its inputs lie in the system's page cache.
        """
        self._checksum = xxhash.xxh3_128()
        cache = self._surveys
        kept = cache.find(job, job.select_topk) if cache else None
        wanted = cache.missing(job) if cache else [job.select_topk]
        # What is in the page cache is best read twice: from there into a core's own cache, where reading
        # all of it first would send it through memory once more. Else the disk counts: one read, if it fits.
        if fits(job, self._memory) and not cached:
            survey, read = self._merge_whole(job, kept, wanted)
        else:
            survey, read = self._merge_streamed(job, kept, wanted, cached)
        for x in job.inputs:
            x.source.check_unchanged(x.info.file)
        if cache:
            cache.keep(job, self._new)
        record = TensorRecord(self._checksum.hexdigest(), survey.energy, survey.passes)
        return TensorReport(record, read)

    def _merge_whole(
        self, job: Job, survey: SurveyResult | None, wanted: Sequence[float]
    ) -> tuple[SurveyResult, int]:
        inputs = self._arrays(job, job.numel)
        self._read(job, inputs, 0, tell=True)
        bound = self._memory.survey
        self._new = {
            topk: self._backend.survey(inputs, topk, self._threads(), bound) for topk in wanted
        }
        survey = survey or self._new[job.select_topk]
        self._fuse(job, self._settle(job, survey), inputs, 0)
        return survey, job.input_bytes

    def _merge_streamed(
        self, job: Job, survey: SurveyResult | None, wanted: Sequence[float], cached: bool
    ) -> tuple[SurveyResult, int]:
        files = [FileRange(*x.source.place(x.info), x.dtype) for x in job.inputs]
        targets, bound = len(job.inputs) - 1, self._memory.survey // max(len(wanted), 1)
        surveyors = {
            topk: self._backend.surveyor(targets, job.numel, topk, self._threads(), bound)
            for topk in wanted
        }
        for surveyor in surveyors.values():
            self._sample(job, files, surveyor, cached)
        passes = 0
        while working := [s for s in surveyors.values() if not s.done]:
            if cached:
                self._survey_files(job, files, working, tell=passes == 0)
            else:
                self._survey_chunks(job, working, tell=passes == 0)
            for surveyor in working:
                surveyor.end_pass()
            passes += 1
        self._new = {topk: surveyor.result() for topk, surveyor in surveyors.items()}
        survey = survey or self._new[job.select_topk]
        params = self._settle(job, survey)
        if cached:
            self._fuse_files(job, params, files, tell=passes == 0)
        else:
            for start, inputs in self._chunks(job, tell=passes == 0):
                self._fuse(job, params, inputs, start)
        return survey, job.input_bytes * (passes + 1)

    def _sample(
        self, job: Job, files: Sequence[FileRange], surveyor: Surveyor, cached: bool
    ) -> None:
        if not cached:
            starts, length = surveyor.sample_runs()
            for start in starts[:: -(-len(starts) // _MOST_RUNS) or 1]:
                will_need(job, start, length, again=True)
        with _explained(job):
            surveyor.sample_files(files, _MOST_RUNS, self._in)

    def _survey_files(
        self, job: Job, files: Sequence[FileRange], surveyors: Sequence[Surveyor], tell: bool
    ) -> None:
        for start, count in self._pieces(job.numel, _CHUNK):
            for surveyor in surveyors:
                with _explained(job):
                    surveyor.update_files(files, start, count, self._in)
            if tell:
                self._advance(count * job.element_bytes)

    def _fuse_files(
        self, job: Job, params: FuseParams, files: Sequence[FileRange], tell: bool
    ) -> None:
        most = min(_CHUNK, self._out.nbytes // job.dtype.size)
        for start, count in self._pieces(job.numel, most):
            out, threads = self._out.array(job.dtype, count), self._threads()
            with _explained(job):
                bad = self._backend.fuse_files(files, params, out, start, threads, self._in)
            if tell:
                self._advance(count * job.element_bytes)
            self._write(job, start, count, bad)

    def _survey_chunks(self, job: Job, surveyors: Sequence[Surveyor], tell: bool) -> None:
        for start, inputs in self._chunks(job, tell):
            for surveyor in surveyors:
                surveyor.update(inputs, start)

    def _chunks(self, job: Job, tell: bool) -> Iterator[tuple[int, list[Array]]]:
        """Chunks as large as fit: where nothing stays in the page cache, the page or more that two reads
        share is fetched twice.
        """
        room = (self._in.nbytes - _ALIGN * len(job.inputs)) // job.element_bytes
        ahead = READ_AHEAD // job.element_bytes
        for start, count in self._pieces(job.numel, min(_MOST_AT_ONCE, room)):
            will_need(job, start + ahead, count)
            inputs = self._arrays(job, count)
            self._read(job, inputs, start, tell)
            yield start, inputs

    def _pieces(self, numel: int, most: int) -> Iterator[tuple[int, int]]:
        for start, count in _pieces(numel, most):
            if self._stop.is_set():
                raise MergeError("the merge was stopped")
            yield start, count

    def _arrays(self, job: Job, count: int) -> list[Array]:
        """Room for `count` elements of every input, one input after the other."""
        arrays = []
        at = 0
        for x in job.inputs:
            arrays.append(self._in.array(x.dtype, count, at))
            at += -(-count * x.dtype.size // _ALIGN) * _ALIGN
        return arrays

    def _read(self, job: Job, into: Sequence[Array], start: int, tell: bool) -> None:
        """Read the elements from `start` on of every input, as many as there is room for."""
        for x, array in zip(job.inputs, into, strict=True):
            size = x.dtype.size
            at = array.address - self._in.address
            view = self._in.view[at : at + array.numel * size]
            x.source.read_into(x.info, start * size, view)
            if tell:
                self._advance(view.nbytes)

    def _settle(self, job: Job, survey: SurveyResult) -> FuseParams:
        """What the survey means for the fuse, unless it found what must not be merged."""
        if self._nonfinite == "error":
            _refuse_nonfinite(job, survey)
        return sce_params(survey, job.numel, job.select_topk, job.variant)

    def _fuse(self, job: Job, params: FuseParams, inputs: Sequence[Array], offset: int) -> None:
        """Fuse what was read, from flat index `offset`, and write it."""
        size = job.dtype.size
        for start, count in _pieces(inputs[0].numel, min(_CHUNK, self._out.nbytes // size)):
            out = self._out.array(job.dtype, count)
            part = [x.part(start, count) for x in inputs]
            bad = self._backend.fuse(part, params, out, offset + start, self._threads())
            self._write(job, offset + start, count, bad)

    def _write(self, job: Job, start: int, count: int, bad: int) -> None:
        """Write elements [start, start + count), of which `bad` are not finite, from the output buffer."""
        if bad and self._nonfinite == "error":
            raise MergeError(
                f"tensor {job.name}: {bad} merged elements overflow {job.dtype.name}; choose a wider "
                "dtype in the config"
            )
        merged = self._out.view[: count * job.dtype.size]
        self._checksum.update(merged)
        self._destination.write(job.name, start * job.dtype.size, merged)
        self._advance(merged.nbytes)


def _pieces(numel: int, most: int) -> Iterator[tuple[int, int]]:
    """(start, count) of pieces of at most `most` elements that begin on block boundaries."""
    if numel <= most:
        bounds = [0, numel] if numel else []
    else:
        # Bounds are rounded down, so that a piece can be a block longer than their distance.
        step = most - _BLOCK if most % _BLOCK else most
        bounds = [*(bound // _BLOCK * _BLOCK for bound in range(0, numel, step)), numel]
    for start, end in pairwise(bounds):
        yield start, end - start


@contextmanager
def _explained(job: Job) -> Iterator[None]:
    """A backend knows an unreadable input by its number alone."""
    try:
        yield
    except InputUnreadable as error:
        raise unreadable(job.inputs[error.input].info, error.number) from None


def _refuse_nonfinite(job: Job, survey: SurveyResult) -> None:
    *by_model, overflows = survey.nonfinite
    for x, count in zip(job.inputs, by_model, strict=True):
        if count:
            raise CheckpointError(
                f"model {x.source.name}, tensor {x.info.name}: {count} NaN or infinite elements; mend the "
                "checkpoint, or go on with --nonfinite propagate, which makes those elements NaN"
            )
    if overflows:
        raise MergeError(
            f"tensor {job.name}: at {overflows} elements the difference to the base overflows fp32"
        )
