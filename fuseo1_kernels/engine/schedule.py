"""Orders the tensors of a merge and groups small ones into units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..plan.job import Job
from .tuning import DEFAULT_TUNING, Tuning

#: The most tensors of a unit, which are recorded together.
MOST_JOBS = 1000


@dataclass(frozen=True)
class Unit:
    """Tensors that one worker takes together: one large tensor, or several small ones."""

    jobs: tuple[Job, ...]

    @property
    def input_bytes(self) -> int:
        return sum(job.input_bytes for job in self.jobs)


def make_units(jobs: Sequence[Job], workers: int, tuning: Tuning = DEFAULT_TUNING) -> list[Unit]:
    """Return all `jobs` in units, in the order in which workers take them.

    Large tensors come first, in descending size, so that the workers end together. The others follow in the order of
    the first input's files; small ones are batched.
    """
    in_file_order = sorted(jobs, key=_first_place)
    share = sum(job.input_bytes for job in jobs) // workers
    limit = max(share // tuning.few, tuning.batch)
    large = [job for job in in_file_order if job.input_bytes > limit]
    large.sort(key=lambda job: -job.input_bytes)
    rest = [job for job in in_file_order if job.input_bytes <= limit]
    return [*(Unit((job,)) for job in large), *_batches(rest, tuning.batch)]


def _first_place(job: Job) -> tuple[str, int]:
    info = job.stored[0].info
    return str(info.file), info.offset


def _batches(jobs: Sequence[Job], size: int) -> list[Unit]:
    batches: list[list[Job]] = []
    filled = size
    for job in jobs:
        if filled >= size or len(batches[-1]) == MOST_JOBS:
            batches.append([])
            filled = 0
        batches[-1].append(job)
        filled += job.input_bytes
    return [Unit(tuple(batch)) for batch in batches]
