"""Runs a plan: workers take units of tensors in order until all are in the sink."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from ..checkpoint.journal import TensorRecord
from ..checkpoint.sink import Sink
from ..plan.plan import Plan
from ..system import free_memory
from .options import MergeOptions
from .read_ahead import ReadAhead
from .result import Progress, fits
from .schedule import make_units
from .survey_cache import SurveyCache
from .threads import submit, wait
from .worker import Executor, MergeContext


@dataclass
class Merged:
    """The merged tensors.

    Attributes:
        records: the journal's record of every tensor, by name.
        resumed: names of the tensors that an earlier run wrote.
        bytes_read: bytes of tensor data that this run read.
        notes: remarks for the result.
    """

    records: dict[str, TensorRecord] = field(default_factory=dict)
    resumed: set[str] = field(default_factory=set)
    bytes_read: int = 0
    notes: list[str] = field(default_factory=list)


def run_plan(
    plan: Plan,
    sink: Sink,
    executor: Executor,
    options: MergeOptions,
    cache: SurveyCache | None,
    progress: Progress | None,
) -> Merged:
    """Merge all tensors that are not in the sink already. Raises MergeError.

    The caller holds signals back: one must not close files that a worker reads, whose descriptors could be reused.
    """
    merged, lock, stop = Merged(), threading.Lock(), threading.Event()
    advance = progress.advance if progress else _discard
    tuning = options.tuning
    context = MergeContext(sink, options.nonfinite, advance, stop, cache, tuning)
    pool = executor.pool(plan, options, context)
    units = make_units(plan.jobs, pool.size, tuning)
    capacity = free_memory() // 2 if tuning.page_cache is None else tuning.page_cache
    read_ahead = ReadAhead(units, pool.size, capacity, skipped=sink.recorded, tuning=tuning)
    if progress:
        total = plan.input_bytes + sum(job.output_bytes for job in plan.jobs)
        progress.start(f"merging {len(plan.jobs)} tensors", total)

    def work(number: int) -> None:
        worker = pool.worker(number, lambda: read_ahead.working)
        while (unit := read_ahead.take()) and not stop.is_set():
            pending = []
            for job in unit.jobs:
                record = sink.recorded.get(job.name)
                if not (record and fits(record, job) and sink.holds(job.name, worker.scratch)):
                    pending.append(job)
                    continue
                advance(job.input_bytes + job.output_bytes)
                with lock:
                    merged.records[job.name] = record
                    merged.resumed.add(job.name)
            reports = worker.merge_all(pending, unit.direct_inputs)
            read_ahead.done(unit)
            if reports:
                records = {name: report.record for name, report in reports.items()}
                sink.complete(records)
                with lock:
                    merged.records.update(records)
                    merged.bytes_read += sum(report.bytes_read for report in reports.values())

    threads = ThreadPoolExecutor(pool.size + read_ahead.readers, thread_name_prefix="fuseo1")
    try:
        try:
            submit(threads, [read_ahead.read] * read_ahead.readers)
            ended = wait(submit(threads, [partial(work, number) for number in range(pool.size)]))
        finally:
            stop.set()
            read_ahead.close()
            pool.stop()
            threads.shutdown()
            pool.close()
        # Raise the first failure: it is the cause, later ones may follow from it.
        for future in sorted(ended, key=lambda f: f.exception() is None):
            future.result()
        merged.notes += pool.notes
        return merged
    finally:
        read_ahead.forget_rest()
        if progress:
            progress.close()


def _discard(_nbytes: int) -> None:
    """Discards progress."""
