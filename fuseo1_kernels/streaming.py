"""One tensor from its files through survey and fuse to its file, within a worker's share of memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import xxhash

from .arrays import Buffer
from .backends import (
    Backend,
    FileRange,
    InputUnreadable,
    Request,
    Surveyor,
    SurveyResult,
)
from .backends.requests import (
    Divergences,
    Magnitudes,
    Norms,
    Ranked,
    Select,
    kept_bytes,
    step_of,
)
from .blame import refuse_nonfinite, refuse_overflow, to_blame
from .by_columns import ColumnMemory, ColumnMerger
from .checkpoint.journal import TensorRecord
from .checkpoint.source import unreadable
from .errors import MergeError
from .methods import ByColumn, Rule
from .plan import Input, Job
from .work import TensorReport, Work

# Elements merged between two looks at whether to stop; their output is written in one call.
_CHUNK = 1 << 20
_LEAST_CHUNK = 1 << 16
# Chunks begin at multiples of this, the kernels' block.
_BLOCK = 256
# Bytes a thread reads of all inputs at a time, to fuse them while they are in its core's cache; several threads
# read more, to be started less often (csrc/cpu/files.cpp).
_READ_BY_THREAD = 2 << 20
# Bytes of a tensor that the system reads in the background while those before are merged, when no one else has.
_READ_AHEAD = 64 << 20
# Runs of a sample: each is a read of its own.
_MOST_RUNS = 2048
# What a survey needs whatever the tensor: histograms, exponent sums, candidates of a small tensor. One for
# magnitudes needs it for every cut.
_SURVEY_FLOOR = 4 << 20
# What a survey keeps, at most, of an element of each input; and what decides on rows, of an element of one, and at the
# least (survey.h).
_RECORD = 16
_ROW_RECORD = 32
_LEAST_DECIDING = 96 << 10


@dataclass(frozen=True)
class Memory:
    """A worker's memory in bytes: for what is read, for one chunk of output, for what surveys keep.

    `floor` is what one survey needs of its part, at the least, besides the room that it is lent; `deciding` is for what
    decides on rows, in `threads` threads at most.
    """

    read: int
    output: int
    survey: int
    floor: int = _SURVEY_FLOOR
    deciding: int = 0
    threads: int = sys.maxsize

    @property
    def total(self) -> int:
        return self.read + self.output + self.survey + self.deciding


def plan_memory(jobs: Sequence[Job], max_bytes: int, threads: int) -> Memory:
    """The memory of a worker that has up to `threads` threads: at most `max_bytes`.

    Most is for the survey, as far as any of `jobs` needs it: of the largest tensors it must hold a part in
    a hundred, or they are read several times.
    """
    by_rows = [job for job in jobs if _longest_row(job)]
    each = max((_deciding(job, 1) for job in by_rows), default=0)
    columns = ColumnMemory.of(jobs)
    floor = max([_SURVEY_FLOOR, columns.copying, *map(_survey_floor, jobs)])
    left = max_bytes - each - columns.output - columns.least
    share = max(min(left // 4, (left - floor) // 2), left // 8)
    output, read = min(_CHUNK * 4, share), min(_READ_BY_THREAD * threads, share)
    # Where rows must be whole, a chunk may have to be larger.
    output = max([output, columns.output, *(_step(job) * job.dtype.size for job in by_rows)])
    read = max([read, columns.least, *(_least_read(job) for job in by_rows)])
    left = max_bytes - each - output - read
    if each:
        threads = max(1, min(threads, 1 + (left - floor) // each))
    deciding = max((_deciding(job, threads) for job in by_rows), default=0)
    left -= deciding - each
    survey = min(left, floor + max(map(_survey_records, jobs), default=0))
    # Wider slabs are fewer reads.
    read += max(0, min(left - survey, columns.most - read))
    return Memory(read, output, survey, floor, deciding, threads)


def memory_floor(jobs: Sequence[Job], surveys: int = 1) -> int:
    """The least bytes with which `jobs` can be merged, one at a time, with so many surveys of it at once."""
    columns = ColumnMemory.of(jobs)
    least = max((_floor(job, surveys) for job in jobs), default=0)
    return least + columns.output + columns.least + columns.copying


def _floor(job: Job, surveys: int) -> int:
    """What `job` needs of that, unless it is for columns."""
    least = 4 * _LEAST_CHUNK * (job.element_bytes + 4) + surveys * _survey_floor(job)
    if not _longest_row(job):
        return least
    return least + _step(job) * job.dtype.size + _least_read(job) + _deciding(job, 1)


def _deciding(job: Job, threads: int) -> int:
    """What decides on rows keeps of each element some words, and of each unit of work a bit a target."""
    step = max(_step(job), 1)
    each = max(_ROW_RECORD * _longest_row(job), _LEAST_DECIDING) + step // 8 * len(job.inputs)
    return each * min(threads, -(-job.numel // step))


def _selects(rule: Rule) -> Sequence[Select]:
    """The selections by which a rule begins; those that look at rows do not wait for a survey."""
    request = rule.request(())
    if request is None:
        return rule.params(()).selects
    return request.selects if isinstance(request, Norms) else ()


def _longest_row(job: Job) -> int:
    """Of the rows that chunks must hold whole; 0: they need hold none."""
    return max((s.row for s in _selects(job.rule) if isinstance(s, Ranked)), default=0)


def _step(job: Job) -> int:
    """Chunks begin at multiples of this, or the whole tensor is one."""
    return min(step_of(_selects(job.rule)), job.numel)


def _least_read(job: Job) -> int:
    """Bytes for what is read of whole rows at once, each input on a cache line of its own."""
    blocks = -(-_step(job) // _BLOCK)
    return blocks * _BLOCK * job.element_bytes + 64 * len(job.inputs)


def _survey_floor(job: Job) -> int:
    request = job.rule.request(())
    if isinstance(request, Divergences):
        return max(request.cuts, 1) * _SURVEY_FLOOR + request.row * _ROW_RECORD
    cuts = sum(map(len, request.ranks)) if isinstance(request, Magnitudes) else 1
    return max(cuts, 1) * _SURVEY_FLOOR


def _survey_records(job: Job) -> int:
    """What a survey would keep of `job`'s elements, at most; those that only sum keep nothing."""
    request = job.rule.request(())
    keeps = isinstance(request, float | Magnitudes) or (
        isinstance(request, Divergences) and request.cuts > 0
    )
    if keeps:
        return job.numel * _RECORD * len(job.inputs)
    # A survey's room is seven eighths of its share, at least.
    return 0 if request is None else kept_bytes(request, job.numel) * 8 // 7


class TensorMerger:
    """A worker: merges one tensor at a time in buffers of its own. `threads` is asked before every kernel call."""

    def __init__(
        self, backend: Backend, memory: Memory, work: Work, *, threads: Callable[[], int]
    ) -> None:
        self._backend = backend
        self._work = work
        self._granted, self._most_threads = threads, memory.threads
        at_once = work.surveys_at_once
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
            backend, work, self._in, self._out, self._threads, self._survey_bytes
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
            learned, made, reads = self._learn(part, files)
            self._fuse(part, files, learned, tell=reads == 0)
            for x in part.inputs:
                x.source.check_unchanged(x.info.file)
            if self._work.surveys and part is job:
                self._work.surveys.keep(job, made)
            energy = learned[0].energy if learned else ()
            passes = max([passes, *(survey.passes for survey in learned)])
            bytes_read += part.input_bytes * (reads + 1)
        record = TensorRecord(self._checksum.hexdigest(), energy, passes)
        return TensorReport(record, bytes_read)

    def _merge_columns(self, job: Job, rule: ByColumn) -> TensorReport:
        passes = self._columns.merge(job, rule)
        self._start = 0
        for start, count in _pieces(job.numel, _CHUNK, 1):
            self._work.go_on()
            self._write(job, start, count, at=start)
        record = TensorRecord(self._checksum.hexdigest(), (), passes)
        return TensorReport(record, job.input_bytes)

    def _learn(
        self, job: Job, files: Sequence[FileRange]
    ) -> tuple[list[SurveyResult], list[tuple[Request, SurveyResult]], int]:
        """What the rule asks for, survey after survey; those that are new; how often the tensor was read for them."""
        learned: list[SurveyResult] = []
        made: list[tuple[Request, SurveyResult]] = []
        reads = 0
        while (request := job.rule.request(learned)) is not None:
            survey, wanted = self._work.look_up(job, request)
            surveys, passes = self._survey(job, files, wanted, tell=reads == 0)
            reads += passes
            made += surveys.items()
            survey = survey or surveys[request]
            if self._work.nonfinite == "error":
                refuse_nonfinite(job, survey)
            learned.append(survey)
        return learned, made, reads

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
            for start, count in self._chunks(job, _CHUNK):
                for surveyor in working:
                    with _explained(job):
                        surveyor.update_files(files, start, count, self._in)
                if tell and passes == 0:
                    self._work.advance(count * job.element_bytes)
            for surveyor in working:
                surveyor.end_pass()
            passes += 1
        return {r: surveyor.result() for r, surveyor in surveyors.items()}, passes

    def _sample(self, job: Job, files: Sequence[FileRange], surveyor: Surveyor) -> None:
        if self._direct:
            starts, length = surveyor.sample_runs(_MOST_RUNS)
            for start in starts:
                _will_need(self._direct, start, length)
        with _explained(job):
            surveyor.sample_files(files, _MOST_RUNS, self._in)

    def _chunks(self, job: Job, most: int) -> Iterator[tuple[int, int]]:
        """(start, count) of the chunks of a tensor, in order."""
        ahead = _READ_AHEAD // job.element_bytes
        for start, count in _pieces(job.numel, most, step_of(_selects(job.rule))):
            self._work.go_on()
            wanted = (start + ahead, count) if start else (0, ahead + count)
            _will_need(self._direct, *wanted)
            yield start, count
            for x in self._direct:
                x.source.drop(x.info, start * x.dtype.size, count * x.dtype.size)

    def _fuse(
        self, job: Job, files: Sequence[FileRange], learned: Sequence[SurveyResult], tell: bool
    ) -> None:
        params = job.rule.params(learned)
        for start, count in self._chunks(job, min(_CHUNK, self._out.nbytes // job.dtype.size)):
            out = self._out.array(job.dtype, count)
            with _explained(job):
                bad = self._backend.fuse_files(files, params, out, start, self._threads(), self._in)
            if tell:
                self._work.advance(count * job.element_bytes)
            if bad and self._work.nonfinite == "error":
                if not learned:
                    self._refuse_inputs(job, files)
                refuse_overflow(job, bad)
            self._write(job, start, count)

    def _refuse_inputs(self, job: Job, files: Sequence[FileRange]) -> None:
        """Raise MergeError, naming the model, if an input that was not surveyed is not finite."""
        job, files, norms = to_blame(job, files)
        surveys, _ = self._survey(job, files, [norms], tell=False)
        refuse_nonfinite(job, surveys[norms])

    def _write(self, job: Job, start: int, count: int, at: int = 0) -> None:
        """Write elements [start, start + count) of the part, which are in the output buffer from element `at` on."""
        size = job.dtype.size
        merged = self._out.view[at * size : (at + count) * size]
        self._checksum.update(merged)
        self._work.destination.write(job.name, (self._start + start) * size, merged)
        self._work.advance(merged.nbytes)


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
