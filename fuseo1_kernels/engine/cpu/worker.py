"""Merges one tensor at a time, from files to the sink, within a worker's share of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import xxhash

from ...backends.arrays import Array, Buffer
from ...backends.contract import Request, step_of
from ...backends.interface import Backend, Surveyor
from ...backends.results import SurveyResult, energy_of
from ...checkpoint.journal import TensorRecord
from ...errors import CheckpointError, MergeError, printable
from ...methods.rule import Average, ByColumn, ByVector, Copied, learn
from ...plan.inputs import Stored
from ...plan.job import Job
from ..nonfinite import JobGuard, counted_job
from ..worker import MergeContext, TensorReport, unchanging
from .average import Averager
from .columns import ColumnMerger
from .earlier import FusedReader, WholeReader
from .feed import Feed, FileFeed, ReaderFeed
from .memory import WorkerMemory, first_selects, memory_floor, plan_memory
from .readers import open_reader
from .tools import Reader, Tools


class CpuWorker:
    """A worker on the CPU: merges one tensor at a time, in its own buffers."""

    def __init__(
        self,
        backend: Backend,
        memory: WorkerMemory,
        context: MergeContext,
        *,
        threads: Callable[[], int],
    ) -> None:
        """Allocate the buffers. Raises MergeError if that fails.

        `threads` returns the number of threads to use; it is called before every kernel call.
        """
        self._backend = backend
        self._context = context
        self._tuning = context.tuning
        self._available_threads, self._most_threads = threads, memory.threads
        at_once = context.surveys_at_once
        share = memory.survey // at_once
        self._survey_bytes = max(min(share, memory.floor), share // 8)
        try:
            self._out, self._in = Buffer(memory.output), Buffer(memory.read)
            self._sums = Buffer(memory.sums)
            self._survey_buffers = [Buffer(share - self._survey_bytes) for _ in range(at_once)]
        except OSError as error:
            raise _no_memory(memory.total, error) from error
        self._tools = Tools(backend, self._threads, context.check_stop, self._open_merged)
        self._columns = ColumnMerger(self._tools, context, self._in, self._out, self._survey_bytes)

    def _threads(self) -> int:
        return min(self._available_threads(), self._most_threads)

    @property
    def scratch(self) -> memoryview:
        """The output buffer, which is free between tensors."""
        return self._out.view

    def merge_all(
        self, jobs: Sequence[Job], direct: Callable[[Job], Sequence[Stored]]
    ) -> dict[str, TensorReport]:
        """Merge `jobs` one after the other; see Worker.merge_all."""
        return {job.name: self.merge(job, direct(job)) for job in jobs}

    def merge(self, job: Job, direct: Sequence[Stored] = ()) -> TensorReport:
        """Merge `job` and write the result. Raises MergeError, naming the tensor and the model.

        Survey and fuse both read the inputs, from the page cache. Those in `direct` are not there: the worker asks the
        system to read ahead of it, and to drop the bytes behind it.
        """
        self._checksum = xxhash.xxh3_128()
        if isinstance(job.rule, ByColumn):
            return self._merge_columns(job, job.rule)
        if isinstance(job.rule, Copied):
            return self._copy(job, direct)
        if isinstance(job.rule, Average):
            return self._average(job, job.rule, direct)
        energy: tuple[float, ...] = ()
        passes = bytes_read = 0
        with ExitStack() as stack:
            readers = self._open_readers(job, stack)
            for self._start, part in job.parts():
                pairs = zip(job.stored, part.stored, strict=True)
                self._direct = [x for whole, x in pairs if whole in direct and not readers]
                with unchanging(part) as places:
                    feed = self._feed(part, places, readers)
                    guard = self._context.guard(part)
                    learned, new, reads = self._learn(part, feed, guard)
                    self._fuse(part, feed, learned, guard, first_read=reads == 0)
                if self._context.surveys and part is job:
                    self._context.surveys.keep(job, new)
                energy = energy_of(learned)
                passes = max([passes, *(survey.passes for survey in learned)])
                bytes_read += part.input_bytes * (reads + 1)
        record = TensorRecord(self._checksum.hexdigest(), energy, passes)
        return TensorReport(record, bytes_read)

    def _open_readers(self, job: Job, stack: ExitStack) -> list[Reader]:
        """Return readers of the inputs, which `stack` closes, if any is computed; none if all are as in their files."""
        if not job.computed:
            return []
        stack.enter_context(unchanging(job))
        return [open_reader(x, self._tools, stack) for x in job.inputs]

    def _open_merged(self, job: Job, stack: ExitStack) -> Reader:
        """Return a reader of what `job`, of an earlier merge, gives; `stack` closes it. Raises MergeError."""
        memory = plan_memory([job], memory_floor([job]), self._most_threads, self._tuning)
        whole = isinstance(job.rule, ByVector)
        try:
            held = WholeReader(job.output_bytes if whole else 0)
        except OSError as error:
            raise _no_memory(job.output_bytes, error) from error
        context = replace(self._context, destination=held, advance=_discard, surveys=None)
        worker = CpuWorker(self._backend, memory, context, threads=self._available_threads)
        if not whole:
            return worker._open_fused(job, stack)
        worker.merge(job)
        return held

    def _open_fused(self, job: Job, stack: ExitStack) -> Reader:
        """Survey `job`, and return a reader that fuses what is read. The worker does nothing else any more."""
        self._start, self._direct = 0, []
        step = step_of(first_selects(job.rule))
        if isinstance(job.rule, Average):
            averager, average = self._open_averager(job, job.rule, stack, _discard)
            return FusedReader(
                average, self._out, job.numel, step, min(self._most(job), averager.most)
            )
        readers = self._open_readers(job, stack)
        feed = self._feed(job, stack.enter_context(unchanging(job)), readers)
        guard = self._context.guard(job)
        learned, _, _ = self._learn(job, feed, guard)
        params = job.rule.params(learned)

        def fuse(start: int, out: Array) -> None:
            self._context.check_stop()
            written = feed.fuse(params, out, start)
            guard.check_output(written, learned, lambda: self._count_nonfinite(job, feed))

        return FusedReader(fuse, self._out, job.numel, step, min(self._most(job), feed.most))

    def _feed(
        self, part: Job, places: Sequence[tuple[int, int]], readers: Sequence[Reader]
    ) -> Feed:
        if readers:
            return ReaderFeed(part.inputs, readers, self._in, self._tools, first=self._start)
        return FileFeed(part.stored, places, self._in, self._tools)

    def _copy(self, job: Job, direct: Sequence[Stored]) -> TensorReport:
        """Copy a tensor of integers. Raises CheckpointError unless all models have the same."""
        first, *others = job.stored
        step = min(self._out.nbytes, self._in.nbytes)
        for start in range(0, job.output_bytes, step):
            self._context.check_stop()
            size = min(step, job.output_bytes - start)
            copied, other = self._out.view[:size], self._in.view[:size]
            first.source.read_into(first.info, start, copied)
            for x in others:
                x.source.read_into(x.info, start, other)
                if other != copied:
                    raise CheckpointError(
                        f"tensor {printable(job.name)}: its {job.dtype.code} elements differ between the models "
                        f"{first.source.name} and {x.source.name}; integers cannot be merged"
                    )
            for x in direct:
                x.source.drop(x.info, start, size)
            self._checksum.update(copied)
            self._context.destination.write(job.name, start, copied)
            self._context.advance(size * (len(job.inputs) + 1))
        for x in job.stored:
            x.source.check_unchanged(x.info.file)
        return TensorReport(TensorRecord(self._checksum.hexdigest(), (), 1), job.input_bytes)

    def _average(self, job: Job, rule: Average, direct: Sequence[Stored]) -> TensorReport:
        self._start, self._direct = 0, [] if job.computed else list(direct)
        with ExitStack() as stack:
            averager, average = self._open_averager(job, rule, stack, self._context.advance)
            for start, count in self._chunks(job, averager, self._most(job)):
                average(start, self._out.array(job.dtype, count))
                self._write(job, start, count)
        return TensorReport(TensorRecord(self._checksum.hexdigest(), (), 1), job.input_bytes)

    def _open_averager(
        self, job: Job, rule: Average, stack: ExitStack, advance: Callable[[int], None]
    ) -> tuple[Averager, Callable[[int, Array], None]]:
        """Return what averages `job`, and a function that fills an array with the means from a flat index on."""
        guard = self._context.guard(job)
        averager = Averager(job, rule, self._tools, self._in, self._sums, stack, advance)

        def average(start: int, out: Array) -> None:
            written = averager.average(out, start)
            guard.check_output(written, (), lambda: averager.count_nonfinite(self._count_nonfinite))

        return averager, average

    def _merge_columns(self, job: Job, rule: ByColumn) -> TensorReport:
        passes = self._columns.merge(job, rule)
        self._start = 0
        for start, count in _pieces(job.numel, self._tuning.chunk, 1):
            self._context.check_stop()
            self._write(job, start, count, at=start)
        record = TensorRecord(self._checksum.hexdigest(), (), passes)
        return TensorReport(record, job.input_bytes)

    def _learn(
        self, job: Job, feed: Feed, guard: JobGuard
    ) -> tuple[list[SurveyResult], list[tuple[Request, SurveyResult]], int]:
        """Return the surveys that the rule requests, the new ones with their requests, and how often they read."""
        new: list[tuple[Request, SurveyResult]] = []
        reads = 0

        def survey(request: Request) -> SurveyResult:
            nonlocal reads
            kept, missing = self._context.look_up(job, request)
            surveys, passes = self._survey(job, feed, missing, first_read=reads == 0)
            reads += passes
            new.extend(surveys.items())
            return kept or surveys[request]

        return learn(job.rule, survey, guard.check_survey), new, reads

    def _survey(
        self, job: Job, feed: Feed, requests: Sequence[Request], first_read: bool
    ) -> tuple[dict[Request, SurveyResult], int]:
        """Return a survey for every request, and how often the tensor was read for all of them."""
        shape = len(job.inputs) - 1, job.numel
        surveyors = {
            request: self._backend.surveyor(
                *shape, request, self._threads(), self._survey_bytes, buffer
            )
            for request, buffer in zip(requests, self._survey_buffers, strict=False)
        }
        for surveyor in surveyors.values():
            self._sample(feed, surveyor)
        passes = 0
        while working := [s for s in surveyors.values() if not s.done]:
            for start, count in self._chunks(job, feed, self._tuning.chunk):
                feed.update(working, start, count)
                if first_read and passes == 0:
                    self._context.advance(count * job.element_bytes)
            for surveyor in working:
                surveyor.end_pass()
            passes += 1
        return {r: surveyor.result() for r, surveyor in surveyors.items()}, passes

    def _sample(self, feed: Feed, surveyor: Surveyor) -> None:
        if self._direct:
            starts, length = surveyor.sample_runs(self._tuning.sample_runs)
            for start in starts:
                _will_need(self._direct, start, length)
        feed.sample(surveyor, self._tuning.sample_runs)

    def _most(self, job: Job) -> int:
        """Return the most elements of a chunk of the output."""
        return min(self._tuning.chunk, self._out.nbytes // job.dtype.size)

    def _chunks(self, job: Job, feed: Feed | Averager, most: int) -> Iterator[tuple[int, int]]:
        """Yield (start, count) of the chunks of a tensor, in order; read direct inputs ahead and drop them behind."""
        ahead = self._tuning.direct_ahead // job.element_bytes
        for start, count in _pieces(
            job.numel, min(most, feed.most), step_of(first_selects(job.rule))
        ):
            self._context.check_stop()
            upcoming = (start + ahead, count) if start else (0, ahead + count)
            _will_need(self._direct, *upcoming)
            yield start, count
            for x in self._direct:
                x.source.drop(x.info, start * x.dtype.size, count * x.dtype.size)

    def _fuse(
        self,
        job: Job,
        feed: Feed,
        learned: Sequence[SurveyResult],
        guard: JobGuard,
        first_read: bool,
    ) -> None:
        params = job.rule.params(learned)
        for start, count in self._chunks(job, feed, self._most(job)):
            written = feed.fuse(params, self._out.array(job.dtype, count), start)
            if first_read:
                self._context.advance(count * job.element_bytes)
            guard.check_output(written, learned, lambda: self._count_nonfinite(job, feed))
            self._write(job, start, count)

    def _count_nonfinite(self, job: Job, feed: Feed) -> SurveyResult:
        feed = feed.twice() if len(job.inputs) == 1 else feed
        job, request = counted_job(job)
        surveys, _ = self._survey(job, feed, [request], first_read=False)
        return surveys[request]

    def _write(self, job: Job, start: int, count: int, at: int = 0) -> None:
        """Write elements [start, start + count) of the part from the output buffer, which has them at element `at`."""
        size = job.dtype.size
        merged = self._out.view[at * size : (at + count) * size]
        self._checksum.update(merged)
        self._context.destination.write(job.name, (self._start + start) * size, merged)
        self._context.advance(merged.nbytes)


def _no_memory(nbytes: int, error: OSError) -> MergeError:
    return MergeError(
        f"{nbytes >> 20} MiB of memory for a worker cannot be had ({error.strerror}); "
        "lower --max-memory or --threads"
    )


def _discard(_nbytes: int) -> None:
    """Discards progress: what an earlier merge reads is counted as what the last one reads."""


def _pieces(numel: int, most: int, unit: int) -> Iterator[tuple[int, int]]:
    """Yield (start, count) of pieces that begin at multiples of `unit`, with at most max(`most`, `unit`) elements."""
    step = max(most // unit * unit, unit)
    for start in range(0, numel, step):
        yield start, min(step, numel - start)


def _will_need(inputs: Sequence[Stored], start: int, count: int) -> None:
    """Ask the system to read elements [start, start + count), as far as they exist, in the background."""
    for x in inputs:
        x.source.will_need(x.info, start * x.dtype.size, count * x.dtype.size)
