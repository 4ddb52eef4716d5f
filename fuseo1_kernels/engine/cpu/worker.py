"""One tensor from its files through survey and fuse to its file, within a worker's share of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import xxhash

from ...backends.arrays import Buffer
from ...backends.contract import Request, step_of
from ...backends.interface import Backend, FileRange, InputUnreadable, Surveyor
from ...backends.results import SurveyResult, energy_of
from ...checkpoint.journal import TensorRecord
from ...checkpoint.source import unreadable
from ...errors import MergeError
from ...methods.rule import ByColumn, learn
from ...plan.job import Input, Job
from ..nonfinite import JobGuard, counted_inputs
from ..worker import MergeContext, TensorReport
from .columns import ColumnMerger
from .memory import WorkerMemory, first_selects


class CpuWorker:
    """A worker: merges one tensor at a time in buffers of its own. `threads` is asked before every kernel call."""

    def __init__(
        self,
        backend: Backend,
        memory: WorkerMemory,
        context: MergeContext,
        *,
        threads: Callable[[], int],
    ) -> None:
        self._backend = backend
        self._context = context
        self._tuning = context.tuning
        self._granted, self._most_threads = threads, memory.threads
        at_once = context.surveys_at_once
        share = memory.survey // at_once
        self._survey_bytes = max(min(share, memory.floor), share // 8)
        try:
            self._out, self._in = Buffer(memory.output), Buffer(memory.read)
            self._rooms = [Buffer(share - self._survey_bytes) for _ in range(at_once)]
        except OSError as error:
            raise MergeError(
                f"{memory.total >> 20} MiB of memory for a worker cannot be had ({error.strerror}); "
                "lower --max-memory or --threads"
            ) from error
        self._columns = ColumnMerger(
            backend, context, self._in, self._out, self._threads, self._survey_bytes
        )

    def _threads(self) -> int:
        return min(self._granted(), self._most_threads)

    @property
    def scratch(self) -> memoryview:
        """The buffer for output: free between tensors."""
        return self._out.view

    def merge_all(
        self, jobs: Sequence[Job], direct: Callable[[Job], Sequence[Input]]
    ) -> dict[str, TensorReport]:
        """`merge` of each, with those inputs that `direct` says of it; reports by name."""
        return {job.name: self.merge(job, direct(job)) for job in jobs}

    def merge(self, job: Job, direct: Sequence[Input] = ()) -> TensorReport:
        """Merge `job` and write the result; raises MergeError, naming tensor and model.

        Its inputs lie in the system's page cache, and are read there twice: into a core's own cache, where
        reading all of them to memory first would send them through memory once more. Those in `direct` do
        not: of them the system is told what to read next, and drops what was read.
        """
        self._checksum = xxhash.xxh3_128()
        if isinstance(job.rule, ByColumn):
            return self._merge_columns(job, job.rule)
        energy: tuple[float, ...] = ()
        passes = bytes_read = 0
        for self._start, part in job.parts():
            pairs = zip(job.inputs, part.inputs, strict=True)
            self._direct = [here for x, here in pairs if x in direct]
            files = [FileRange(*x.source.place(x.info), x.dtype) for x in part.inputs]
            guard = self._context.guard(part)
            learned, made, reads = self._learn(part, files, guard)
            self._fuse(part, files, learned, guard, tell=reads == 0)
            for x in part.inputs:
                x.source.check_unchanged(x.info.file)
            if self._context.surveys and part is job:
                self._context.surveys.keep(job, made)
            energy = energy_of(learned)
            passes = max([passes, *(survey.passes for survey in learned)])
            bytes_read += part.input_bytes * (reads + 1)
        record = TensorRecord(self._checksum.hexdigest(), energy, passes)
        return TensorReport(record, bytes_read)

    def _merge_columns(self, job: Job, rule: ByColumn) -> TensorReport:
        passes = self._columns.merge(job, rule)
        self._start = 0
        for start, count in _pieces(job.numel, self._tuning.chunk, 1):
            self._context.go_on()
            self._write(job, start, count, at=start)
        record = TensorRecord(self._checksum.hexdigest(), (), passes)
        return TensorReport(record, job.input_bytes)

    def _learn(
        self, job: Job, files: Sequence[FileRange], guard: JobGuard
    ) -> tuple[list[SurveyResult], list[tuple[Request, SurveyResult]], int]:
        """Return the surveys that the rule requests, those of them that are new, and the reads that they took."""
        made: list[tuple[Request, SurveyResult]] = []
        reads = 0

        def survey(request: Request) -> SurveyResult:
            nonlocal reads
            kept, missing = self._context.look_up(job, request)
            surveys, passes = self._survey(job, files, missing, tell=reads == 0)
            reads += passes
            made.extend(surveys.items())
            return kept or surveys[request]

        return learn(job.rule, survey, guard.check_survey), made, reads

    def _survey(
        self, job: Job, files: Sequence[FileRange], wanted: Sequence[Request], tell: bool
    ) -> tuple[dict[Request, SurveyResult], int]:
        """A survey for every request, and how often the tensor was read for them."""
        shape = len(job.inputs) - 1, job.numel
        surveyors = {
            r: self._backend.surveyor(*shape, r, self._threads(), self._survey_bytes, room)
            for r, room in zip(wanted, self._rooms, strict=False)
        }
        for surveyor in surveyors.values():
            self._sample(job, files, surveyor)
        passes = 0
        while working := [s for s in surveyors.values() if not s.done]:
            for start, count in self._chunks(job, self._tuning.chunk):
                for surveyor in working:
                    with _explained(job):
                        surveyor.update_files(files, start, count, self._in)
                if tell and passes == 0:
                    self._context.advance(count * job.element_bytes)
            for surveyor in working:
                surveyor.end_pass()
            passes += 1
        return {r: surveyor.result() for r, surveyor in surveyors.items()}, passes

    def _sample(self, job: Job, files: Sequence[FileRange], surveyor: Surveyor) -> None:
        if self._direct:
            starts, length = surveyor.sample_runs(self._tuning.sample_runs)
            for start in starts:
                _will_need(self._direct, start, length)
        with _explained(job):
            surveyor.sample_files(files, self._tuning.sample_runs, self._in)

    def _chunks(self, job: Job, most: int) -> Iterator[tuple[int, int]]:
        """(start, count) of the chunks of a tensor, in order."""
        ahead = self._tuning.direct_ahead // job.element_bytes
        for start, count in _pieces(job.numel, most, step_of(first_selects(job.rule))):
            self._context.go_on()
            wanted = (start + ahead, count) if start else (0, ahead + count)
            _will_need(self._direct, *wanted)
            yield start, count
            for x in self._direct:
                x.source.drop(x.info, start * x.dtype.size, count * x.dtype.size)

    def _fuse(
        self,
        job: Job,
        files: Sequence[FileRange],
        learned: Sequence[SurveyResult],
        guard: JobGuard,
        tell: bool,
    ) -> None:
        params = job.rule.params(learned)
        for start, count in self._chunks(
            job, min(self._tuning.chunk, self._out.nbytes // job.dtype.size)
        ):
            out = self._out.array(job.dtype, count)
            with _explained(job):
                written = self._backend.fuse_files(
                    files, params, out, start, self._threads(), self._in
                )
            if tell:
                self._context.advance(count * job.element_bytes)
            guard.check_output(written, learned, lambda: self._count_nonfinite(job, files))
            self._write(job, start, count)

    def _count_nonfinite(self, job: Job, files: Sequence[FileRange]) -> SurveyResult:
        job, files, request = counted_inputs(job, files)
        surveys, _ = self._survey(job, files, [request], tell=False)
        return surveys[request]

    def _write(self, job: Job, start: int, count: int, at: int = 0) -> None:
        """Write elements [start, start + count) of the part, which are in the output buffer from element `at` on."""
        size = job.dtype.size
        merged = self._out.view[at * size : (at + count) * size]
        self._checksum.update(merged)
        self._context.destination.write(job.name, (self._start + start) * size, merged)
        self._context.advance(merged.nbytes)


def _pieces(numel: int, most: int, unit: int) -> Iterator[tuple[int, int]]:
    """(start, count) of pieces that begin at multiples of `unit`: of at most `most` elements, if that is no less."""
    step = max(most // unit * unit, unit)
    for start in range(0, numel, step):
        yield start, min(step, numel - start)


def _will_need(inputs: Sequence[Input], start: int, count: int) -> None:
    """Have the system read elements [start, start + count), as far as there are, in the background."""
    for x in inputs:
        x.source.will_need(x.info, start * x.dtype.size, count * x.dtype.size)


@contextmanager
def _explained(job: Job) -> Iterator[None]:
    """A backend knows an unreadable input by its number alone."""
    try:
        yield
    except InputUnreadable as error:
        raise unreadable(job.inputs[error.input].info, error.number) from None
