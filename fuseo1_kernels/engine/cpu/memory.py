"""Budgets the host memory of a merge on the CPU: workers, buffers, survey state."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ...backends.contract import (
    Divergences,
    Magnitudes,
    Norms,
    Ranked,
    Select,
    kept_bytes,
    step_of,
)
from ...errors import MergeError
from ...methods.rule import ByColumn, Rule
from ...plan.job import Job
from ...plan.plan import Plan
from ...system import resolve_threads
from ..options import MergeOptions
from ..tuning import DEFAULT_TUNING, Tuning

# Fewer workers with more threads each serve better than workers with less memory than this, in bytes.
_LEAST_WORKER_MEMORY = 48 << 20
# Touching fresh memory costs time: a merge uses at most this share of its inputs' bytes, or this many bytes.
_MEMORY_SHARE = 16
_ENOUGH_MEMORY = 256 << 20
_LEAST_CHUNK = 1 << 16
# Chunks begin at multiples of the kernels' block, in elements.
_BLOCK = 256
# Bytes of all inputs that a thread reads at a time, to fuse them while they are in its core's cache. Several threads
# read more, to be started less often (csrc/cpu/files.cpp).
_READ_BY_THREAD = 2 << 20
# Bytes that a survey needs for any tensor: histograms, exponent sums, candidates of a small tensor. A survey of
# magnitudes needs them for every cut.
_SURVEY_FLOOR = 4 << 20
# Bytes that a survey keeps of an element, at most (survey.h): of each input; to decide on a row, of one input; and the
# least for such a decision.
_RECORD = 16
_ROW_RECORD = 32
_LEAST_DECIDING = 96 << 10
# Elements of a row that are read at a time: fewer would be reads of less than 512 bytes; more than a page gain nothing.
_LEAST_COLUMNS = 256
MOST_COLUMNS = 2048
# The inputs of a slab begin at multiples of a cache line, in bytes.
LINE = 64


@dataclass(frozen=True)
class WorkerMemory:
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


def divide_memory(plan: Plan, options: MergeOptions, surveys: int = 1) -> tuple[int, WorkerMemory]:
    """Return the number of workers and the memory of each, for `surveys` surveys of a tensor in one read.

    MergeError if `options.max_memory` is too little.
    """
    threads, max_memory = resolve_threads(options.threads), options.max_memory
    needed = memory_floor(plan.jobs, surveys)
    if needed > max_memory:
        raise MergeError(
            f"--max-memory {max_memory >> 20} MiB is too little for these models; "
            f"the least is {(needed >> 20) + 1} MiB"
        )
    enough = max(plan.input_bytes // _MEMORY_SHARE, _ENOUGH_MEMORY, needed)
    usable = min(max_memory, surveys * enough)
    fit = usable // max(needed, _LEAST_WORKER_MEMORY)
    workers = max(1, min(threads, len(plan.jobs), fit))
    return workers, plan_memory(plan.jobs, usable // workers, threads, options.tuning)


def plan_memory(
    jobs: Sequence[Job], max_bytes: int, threads: int, tuning: Tuning = DEFAULT_TUNING
) -> WorkerMemory:
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
    output, read = min(tuning.chunk * 4, share), min(_READ_BY_THREAD * threads, share)
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
    return WorkerMemory(read, output, survey, floor, deciding, threads)


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


def first_selects(rule: Rule) -> Sequence[Select]:
    """The selections by which a rule begins; those that look at rows do not wait for a survey."""
    request = rule.request(())
    if request is None:
        return rule.params(()).selects
    return request.selects if isinstance(request, Norms) else ()


def _longest_row(job: Job) -> int:
    """Of the rows that chunks must hold whole; 0: they need hold none."""
    return max((s.row for s in first_selects(job.rule) if isinstance(s, Ranked)), default=0)


def _step(job: Job) -> int:
    """Chunks begin at multiples of this, or the whole tensor is one."""
    return min(step_of(first_selects(job.rule)), job.numel)


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


@dataclass(frozen=True)
class ColumnMemory:
    """Bytes that jobs need to be merged by columns: for a whole output; for a slab, at the least and at the most.

    `copying` is what Python copies a column by. It is held when no survey is.
    """

    output: int = 0
    least: int = 0
    most: int = 0
    copying: int = 0

    @classmethod
    def of(cls, jobs: Sequence[Job]) -> ColumnMemory:
        """For each of `jobs`, and those that are not merged by columns need none."""
        shapes = [(job, job.rule) for job in jobs if isinstance(job.rule, ByColumn)]
        return cls(
            max((job.output_bytes for job, _ in shapes), default=0),
            max((_slab_bytes(job, rule, _LEAST_COLUMNS) for job, rule in shapes), default=0),
            max((_slab_bytes(job, rule, MOST_COLUMNS) for job, rule in shapes), default=0),
            max((_longest(rule) * _largest(job) for job, rule in shapes), default=0),
        )


def _longest(rule: ByColumn) -> int:
    """Elements that Python copies at once: a column, or a row of a slab."""
    return max(rule.rows, min(rule.columns, MOST_COLUMNS))


def _largest(job: Job) -> int:
    """Bytes of the largest element that is turned."""
    return max(job.dtype.size, *(x.dtype.size for x in job.inputs))


def column_bytes(job: Job, rule: ByColumn) -> int:
    """A column of all inputs, and once more of one of them, as it was read, or of the output."""
    return rule.rows * (job.element_bytes + _largest(job))


def _slab_bytes(job: Job, rule: ByColumn, columns: int) -> int:
    """Bytes of a slab of so many columns, if there are so many."""
    return min(columns, rule.columns) * column_bytes(job, rule) + LINE * len(job.inputs)
