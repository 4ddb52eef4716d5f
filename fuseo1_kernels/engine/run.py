"""Runs a plan: workers take tensors in order until all are in the sink."""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from ..checkpoint.journal import TensorRecord
from ..checkpoint.signals import held_signals
from ..checkpoint.sink import Sink
from ..errors import MergeError
from ..plan.plan import Plan
from ..system import free_memory
from .read_ahead import Feed
from .result import Progress
from .schedule import make_units
from .survey_cache import SurveyCache
from .worker import Arithmetic, Work


@dataclass
class Merged:
    """Tensors that are in the output: their records by name, which of them an earlier run wrote, bytes read, notes."""

    records: dict[str, TensorRecord] = field(default_factory=dict)
    resumed: set[str] = field(default_factory=set)
    bytes_read: int = 0
    notes: list[str] = field(default_factory=list)


def run_plan(
    plan: Plan,
    sink: Sink,
    arithmetic: Arithmetic,
    threads: int | None,
    max_memory: int,
    nonfinite: str,
    cache: SurveyCache | None,
    progress: Progress | None,
) -> Merged:
    """Merge all tensors that are not in the sink already."""
    done, lock, stop = Merged(), threading.Lock(), threading.Event()
    advance = progress.advance if progress else _ignore
    shared = Work(sink, nonfinite, advance, stop, cache)
    crew = arithmetic.crew(plan, threads, max_memory, shared)
    units = make_units(plan.jobs, crew.workers)
    feed = Feed(units, crew.workers, free_memory() // 2, skipped=sink.recorded)
    if progress:
        total = plan.input_bytes + sum(job.output_bytes for job in plan.jobs)
        progress.start(f"merging {len(plan.jobs)} tensors", total)

    def work(number: int) -> None:
        merger = crew.merger(number, lambda: feed.working)
        while (portion := feed.take()) and not stop.is_set():
            left = []
            for job in portion.jobs:
                record = sink.recorded.get(job.name)
                if record is None or not sink.holds(job.name, merger.scratch):
                    left.append(job)
                    continue
                advance(job.input_bytes + job.output_bytes)
                with lock:
                    done.records[job.name] = record
                    done.resumed.add(job.name)
            reports = merger.merge_all(left, portion.direct_inputs)
            feed.done(portion)
            if reports:
                merged = {name: report.record for name, report in reports.items()}
                sink.complete(merged)
                with lock:
                    done.records.update(merged)
                    done.bytes_read += sum(report.bytes_read for report in reports.values())

    pool = ThreadPoolExecutor(crew.workers + feed.readers, thread_name_prefix="fuseo1")
    try:
        try:
            for _ in range(feed.readers):
                pool.submit(feed.read)
            futures = [pool.submit(work, number) for number in range(crew.workers)]
            ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
        except RuntimeError as error:  # of submit; those of the workers are in their futures
            raise MergeError(f"{error}; lower --threads") from error
        finally:
            # A second Ctrl-C must not close the files under a worker: their numbers may be others' by then.
            with held_signals(redeliver=True):
                stop.set()
                feed.close()
                crew.stop()
                pool.shutdown()
                crew.close()
        # The first failure is the cause; the others may be its echo.
        for future in sorted(ended, key=lambda f: f.exception() is None):
            future.result()
        done.notes += crew.notes
        return done
    finally:
        feed.forget_rest()
        if progress:
            progress.close()


def _ignore(_nbytes: int) -> None:
    """No one is told."""
