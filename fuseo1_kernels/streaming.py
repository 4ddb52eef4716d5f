"""One tensor from its files through survey and fuse to its file, within a worker's share of memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .arrays import Array, Buffer
from .backends import Backend, FuseParams, SurveyResult
from .checkpoint.sink import Sink
from .errors import CheckpointError, MergeError
from .plan import Job
from .weights import sce_params

# Elements moved at a time: four bf16 inputs of them are 8 MiB, which stay in the caches from the read to the
# arithmetic. A multiple of 65,536, the kernels' segment.
_CHUNK = 1 << 20
_LEAST_CHUNK = 1 << 16
_ALIGN = 64
# What a survey needs whatever the tensor: histograms, exponent sums, candidates of a small tensor.
_SURVEY_FLOOR = 4 << 20


@dataclass(frozen=True)
class TensorReport:
    """What happened to one tensor: survey passes, bytes read, and the energy of each target by name."""

    name: str
    passes: int
    bytes_read: int
    energy: dict[str, float]


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
    """A worker's memory for any of `jobs`: at most `max_bytes`, and no more than the largest needs."""
    survey = max_bytes // 4
    output = min(_CHUNK * 4, max_bytes // 4)
    largest = max((job.input_bytes + _ALIGN * len(job.inputs) for job in jobs), default=1)
    return Memory(min(max_bytes - survey - output, largest), output, survey)


def memory_floor(job: Job) -> int:
    """The least bytes with which `job` can be merged."""
    return 4 * _LEAST_CHUNK * (_element_bytes(job) + 4) + _SURVEY_FLOOR


class TensorMerger:
    """A worker: merges one tensor at a time in buffers of its own."""

    def __init__(
        self,
        backend: Backend,
        sink: Sink,
        memory: Memory,
        threads: int,
        nonfinite: str,
        advance: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        self._backend = backend
        self._sink = sink
        self._threads = threads
        self._nonfinite = nonfinite
        self._advance = advance
        self._stop = stop
        self._survey_bytes = memory.survey
        try:
            self._out, self._in = Buffer(memory.output), Buffer(memory.inputs)
        except OSError as error:
            raise MergeError(
                f"{memory.total >> 20} MiB of memory for a worker cannot be had ({error.strerror}); "
                "lower --max-memory or --threads"
            ) from error

    def merge(self, job: Job) -> TensorReport:
        """Merge `job` and write the result; raises MergeError, naming tensor and model."""
        if job.input_bytes + _ALIGN * len(job.inputs) <= self._in.nbytes:
            survey, read = self._merge_whole(job)
        else:
            survey, read = self._merge_chunked(job)
        names = [x.source.name for x in job.inputs[1:]]
        energy = dict(zip(names, survey.energy, strict=True))
        return TensorReport(job.name, survey.passes, read, energy)

    def _merge_whole(self, job: Job) -> tuple[SurveyResult, int]:
        inputs = self._read(job, 0, job.numel, tell=True)
        survey = self._backend.survey(inputs, job.select_topk, self._threads, self._survey_bytes)
        self._fuse(job, self._settle(job, survey), inputs, 0)
        return survey, job.input_bytes

    def _merge_chunked(self, job: Job) -> tuple[SurveyResult, int]:
        surveyor = self._backend.surveyor(
            len(job.inputs) - 1, job.numel, job.select_topk, self._threads, self._survey_bytes
        )
        starts, length = surveyor.sample_runs()
        # A sample that would not fit is thinned out evenly.
        fit = (self._in.nbytes - _ALIGN * len(job.inputs)) // (length * _element_bytes(job) or 1)
        surveyor.sample(self._read_runs(job, starts[:: len(starts) // (fit + 1) + 1], length))
        passes = 0
        while not surveyor.done:
            for start, inputs in self._chunks(job, tell=passes == 0):
                surveyor.update(inputs, start)
            surveyor.end_pass()
            passes += 1
        survey = surveyor.result()
        params = self._settle(job, survey)
        for start, inputs in self._chunks(job, tell=False):
            self._fuse(job, params, inputs, start)
        return survey, job.input_bytes * (passes + 1)

    def _chunks(self, job: Job, tell: bool) -> Iterator[tuple[int, list[Array]]]:
        for start, count in _pieces(job.numel, self._in.nbytes, _element_bytes(job)):
            if self._stop.is_set():
                raise MergeError("the merge was stopped")
            yield start, self._read(job, start, count, tell)

    def _read(self, job: Job, start: int, count: int, tell: bool) -> list[Array]:
        """Elements [start, start + count) of every input."""
        arrays = []
        at = 0
        for x in job.inputs:
            size = x.dtype.size
            array = self._in.array(x.dtype, count, at)
            x.source.read_into(x.info, start * size, self._in.view[at : at + count * size])
            arrays.append(array)
            at += -(-count * size // _ALIGN) * _ALIGN
            if tell:
                self._advance(count * size)
        return arrays

    def _read_runs(self, job: Job, starts: Sequence[int], length: int) -> list[Array]:
        arrays: list[Array] = []
        at = 0
        for x in job.inputs if starts else ():
            size = x.dtype.size
            arrays.append(self._in.array(x.dtype, len(starts) * length, at))
            for start in starts:
                view = self._in.view[at : at + length * size]
                x.source.read_into(x.info, start * size, view)
                at += length * size
        return arrays

    def _settle(self, job: Job, survey: SurveyResult) -> FuseParams:
        """What the survey means for the fuse, unless it found what must not be merged."""
        if self._nonfinite == "error":
            _refuse_nonfinite(job, survey)
        return sce_params(survey, job.numel, job.select_topk, job.variant)

    def _fuse(self, job: Job, params: FuseParams, inputs: Sequence[Array], offset: int) -> None:
        """Fuse what was read, from flat index `offset`, and write it."""
        size = job.dtype.size
        for start, count in _pieces(inputs[0].numel, self._out.nbytes, size):
            out = self._out.array(job.dtype, count)
            part = [x.part(start, count) for x in inputs]
            bad = self._backend.fuse(part, params, out, offset + start, self._threads)
            if bad and self._nonfinite == "error":
                raise MergeError(
                    f"tensor {job.name}: {bad} merged elements overflow {job.dtype.name}; choose a wider "
                    "dtype in the config"
                )
            self._sink.write(job.name, (offset + start) * size, self._out.view[: count * size])
            self._advance(count * size)


def _element_bytes(job: Job) -> int:
    return sum(x.dtype.size for x in job.inputs)


def _pieces(numel: int, max_bytes: int, element_bytes: int) -> Iterator[tuple[int, int]]:
    """(start, count) of the pieces of `numel` elements: at most a chunk each, starts on block boundaries."""
    step = min(_CHUNK, max_bytes // element_bytes // _LEAST_CHUNK * _LEAST_CHUNK)
    for start in range(0, numel, step):
        yield start, min(step, numel - start)


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
