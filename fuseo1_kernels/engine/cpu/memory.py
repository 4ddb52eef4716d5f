"""Budgets the host memory of a merge on the CPU: workers, buffers, survey state."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ...backends.contract import (
    Divergences,
    Magnitudes,
    Norms,
    Overlaps,
    Ranked,
    Select,
    kept_bytes,
    step_of,
)
from ...methods.rule import Average, ByColumn, ByVector, Rule
from ...plan.inputs import Input
from ...plan.job import Job
from ...plan.plan import Plan
from ...plan.stages import Merged
from ...system import resolve_threads
from ..headers_memory import left_by_headers
from ..options import MergeOptions
from ..tuning import DEFAULT_TUNING, Tuning

# Bytes. With less memory per worker, fewer workers with more threads each are faster.
_LEAST_WORKER_MEMORY = 48 << 20
# Touching fresh memory costs time, so a merge uses no more than its input bytes / _MEMORY_SHARE, or _ENOUGH_MEMORY
# bytes if that is more.
_MEMORY_SHARE = 16
_ENOUGH_MEMORY = 256 << 20
# Elements.
_LEAST_CHUNK = 1 << 16
# Elements of the kernels' block. Chunks begin at multiples of it.
_BLOCK = 256
# Bytes of all inputs that a thread reads at a time, so that they are fused while in its core's cache. Several threads
# read more at a time, to be started less often (csrc/cpu/files.cpp).
_READ_BY_THREAD = 2 << 20
# Bytes that a survey needs for any tensor: histograms, exponent sums, candidates of a small tensor. A survey of
# magnitudes needs them for every cut.
_SURVEY_FLOOR = 4 << 20
# The most bytes that a survey keeps per element (survey.h): of each input; and of one input while it ranks a row.
_RECORD = 16
_ROW_RECORD = 32
# Bytes of an average's sum of one element.
_SUM = 8
# Bytes. The least memory for ranking a row.
_LEAST_DECIDING = 96 << 10
# Columns in a slab. With fewer a read has less than 512 bytes; more than a page per read gain nothing.
_LEAST_COLUMNS = 256
MOST_COLUMNS = 2048
# Bytes of a cache line. The inputs of a slab begin at multiples of it.
LINE = 64


@dataclass(frozen=True)
class WorkerMemory:
    """A worker's memory, in bytes.

    Attributes:
        read: buffer for inputs.
        output: buffer for one chunk of output.
        survey: memory of all surveys of a tensor in one read.
        floor: the part of one survey's memory that the survey allocates itself; the rest is lent to it.
        deciding: memory for ranking rows.
        threads: the most threads; `deciding` suffices for them.
        computing: memory for computing inputs.
        sums: of an average, fp64, for one chunk.
    """

    read: int
    output: int
    survey: int
    floor: int = _SURVEY_FLOOR
    deciding: int = 0
    threads: int = sys.maxsize
    computing: int = 0
    sums: int = 0

    @property
    def total(self) -> int:
        buffers = self.read + self.output + self.survey + self.sums
        return buffers + self.deciding + self.computing


def divide_memory(plan: Plan, options: MergeOptions, surveys: int = 1) -> tuple[int, WorkerMemory]:
    """Return the number of workers and the memory of each, for `surveys` surveys of a tensor in one read.

    Raises MergeError if `options.max_memory` is too little.
    """
    threads = resolve_threads(options.threads)
    needed = memory_floor(plan.jobs, surveys)
    left = left_by_headers(plan, options.max_memory, needed)
    enough = max(plan.input_bytes // _MEMORY_SHARE, _ENOUGH_MEMORY, needed)
    usable = min(left, surveys * enough)
    fit = usable // max(needed, _LEAST_WORKER_MEMORY)
    workers = max(1, min(threads, len(plan.jobs), fit))
    return workers, plan_memory(plan.jobs, usable // workers, threads, options.tuning)


def plan_memory(
    jobs: Sequence[Job], max_bytes: int, threads: int, tuning: Tuning = DEFAULT_TUNING
) -> WorkerMemory:
    """Budget the memory of a worker with up to `threads` threads: at most `max_bytes`.

    Surveys get most of it, as far as any of `jobs` needs it: a survey must hold about one in a hundred elements of a
    large tensor, or it reads the tensor several times.
    """
    computing = max(map(_computing, jobs), default=0)
    max_bytes -= computing
    by_rows = [job for job in jobs if _longest_row(job)]
    per_thread = max((_deciding(job, 1) for job in by_rows), default=0)
    columns = ColumnMemory.of(jobs)
    floor = max([_SURVEY_FLOOR, columns.copying, *map(_survey_floor, jobs)])
    available = max_bytes - per_thread - columns.output - columns.least
    share = max(min(available // 4, (available - floor) // 2), available // 8)
    output, read = min(tuning.chunk * 4, share), min(_READ_BY_THREAD * threads, share)
    # A chunk of whole rows may have to be larger.
    output = max([output, columns.output, *(_step(job) * job.dtype.size for job in by_rows)])
    read = max([read, columns.least, *(_least_read(job) for job in by_rows)])
    sums = min(tuning.chunk * _SUM, share) if any(map(_averaged, jobs)) else 0
    available = max_bytes - per_thread - output - read - sums
    if per_thread:
        threads = max(1, min(threads, 1 + (available - floor) // per_thread))
    deciding = max((_deciding(job, threads) for job in by_rows), default=0)
    available -= deciding - per_thread
    survey = min(available, floor + max(map(_survey_records, jobs), default=0))
    # Wider slabs need fewer reads.
    read += max(0, min(available - survey, columns.most - read))
    return WorkerMemory(read, output, survey, floor, deciding, threads, computing, sums)


def memory_floor(jobs: Sequence[Job], surveys: int = 1) -> int:
    """Return the least bytes that merging `jobs` takes, one at a time, with `surveys` surveys in one read."""
    columns = ColumnMemory.of(jobs)
    least = max((_floor(job, surveys) + _computing(job) for job in jobs), default=0)
    return least + columns.output + columns.least + columns.copying


def _floor(job: Job, surveys: int) -> int:
    """Return the least bytes for one job, without those of ColumnMemory."""
    # An average takes its inputs a few at a time.
    element = _SUM if _averaged(job) else job.element_bytes
    least = 4 * _LEAST_CHUNK * (element + 4) + surveys * _survey_floor(job)
    if not _longest_row(job):
        return least
    return least + _step(job) * job.dtype.size + _least_read(job) + _deciding(job, 1)


def _averaged(job: Job) -> bool:
    return isinstance(job.rule, Average)


def _computing(job: Job) -> int:
    """Return the bytes for computing the job's inputs."""
    return sum(map(_computing_input, job.inputs))


def _computing_input(x: Input) -> int:
    if not isinstance(x, Merged):
        return x.scratch_bytes
    # A worker of its own, which holds what is not merged element by element.
    return memory_floor([x.job]) + (x.job.output_bytes if isinstance(x.job.rule, ByVector) else 0)


def _deciding(job: Job, threads: int) -> int:
    """Return the bytes for ranking rows: per thread a record for each element of a row, and a mask of each target."""
    step = max(_step(job), 1)
    per_thread = max(_ROW_RECORD * _longest_row(job), _LEAST_DECIDING) + step // 8 * len(job.inputs)
    return per_thread * min(threads, -(-job.numel // step))


def first_selects(rule: Rule) -> Sequence[Select]:
    """Return the selections known before any survey. All selections by rows are among them."""
    request = rule.request(())
    if request is None:
        return rule.params(()).selects
    return request.selects if isinstance(request, Norms | Overlaps) else ()


def _longest_row(job: Job) -> int:
    """Return the elements of the longest row that a chunk must hold whole; 0 if there is none."""
    return max((s.row for s in first_selects(job.rule) if isinstance(s, Ranked)), default=0)


def _step(job: Job) -> int:
    """Return the elements at whose multiples chunks begin, at most the whole tensor."""
    return min(step_of(first_selects(job.rule)), job.numel)


def _least_read(job: Job) -> int:
    """Return the bytes to read one step of all inputs, each on a cache line of its own."""
    blocks = -(-_step(job) // _BLOCK)
    return blocks * _BLOCK * job.element_bytes + LINE * len(job.inputs)


def _survey_floor(job: Job) -> int:
    """Return the least bytes for one survey."""
    request = job.rule.request(())
    if isinstance(request, Divergences):
        return max(request.cuts, 1) * _SURVEY_FLOOR + request.row * _ROW_RECORD
    cuts = sum(map(len, request.ranks)) if isinstance(request, Magnitudes) else 1
    return max(cuts, 1) * _SURVEY_FLOOR


def _survey_records(job: Job) -> int:
    """Return the most bytes that a survey keeps of `job`'s elements; surveys that only sum keep none."""
    request = job.rule.request(())
    keeps = isinstance(request, float | Magnitudes) or (
        isinstance(request, Divergences) and request.cuts > 0
    )
    if keeps:
        return job.numel * _RECORD * len(job.inputs)
    # At least seven eighths of a survey's memory are lent to it (CpuWorker), and drawn masks are kept there.
    return 0 if request is None else kept_bytes(request, job.numel) * 8 // 7


@dataclass(frozen=True)
class ColumnMemory:
    """The bytes that merging by columns takes.

    Attributes:
        output: the whole output of the largest tensor.
        least, most: a slab of the fewest and of the most columns.
        copying: temporary copies of a column or a row by Python. None exists while a survey runs.
    """

    output: int = 0
    least: int = 0
    most: int = 0
    copying: int = 0

    @classmethod
    def of(cls, jobs: Sequence[Job]) -> ColumnMemory:
        """Return the bytes for any of `jobs`; all 0 if none is merged by columns."""
        by_column = [(job, job.rule) for job in jobs if isinstance(job.rule, ByColumn)]
        return cls(
            max((job.output_bytes for job, _ in by_column), default=0),
            max((_slab_bytes(job, rule, _LEAST_COLUMNS) for job, rule in by_column), default=0),
            max((_slab_bytes(job, rule, MOST_COLUMNS) for job, rule in by_column), default=0),
            max((_longest(rule) * _largest(job) for job, rule in by_column), default=0),
        )


def _longest(rule: ByColumn) -> int:
    """Return the most elements that Python copies at once: a column, or a row of a slab."""
    return max(rule.rows, min(rule.columns, MOST_COLUMNS))


def _largest(job: Job) -> int:
    """Return the bytes of the largest element of inputs and output."""
    return max(job.dtype.size, *(x.dtype.size for x in job.inputs))


def column_bytes(job: Job, rule: ByColumn) -> int:
    """Return the bytes of one column: of all inputs, and of one input before transposing or of the output."""
    return rule.rows * (job.element_bytes + _largest(job))


def _slab_bytes(job: Job, rule: ByColumn, columns: int) -> int:
    """Return the bytes of a slab of at most `columns` columns."""
    return min(columns, rule.columns) * column_bytes(job, rule) + LINE * len(job.inputs)
