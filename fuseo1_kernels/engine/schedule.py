"""In which order tensors are merged, and which of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..plan.job import Job
from .tuning import DEFAULT_TUNING, Tuning


@dataclass(frozen=True)
class Unit:
    """Tensors that one worker merges, one after the other: a large one alone, small ones together."""

    jobs: tuple[Job, ...]

    @property
    def input_bytes(self) -> int:
        return sum(job.input_bytes for job in self.jobs)


def make_units(jobs: Sequence[Job], workers: int, tuning: Tuning = DEFAULT_TUNING) -> list[Unit]:
    """All `jobs`: the largest first, so that the workers end together; the rest as in the base's files.

    Small ones come in batches.
    """
    in_order = sorted(jobs, key=lambda j: (str(j.inputs[0].info.file), j.inputs[0].info.offset))
    share = sum(job.input_bytes for job in jobs) // workers
    least = max(share // tuning.few, tuning.batch)
    large = [job for job in in_order if job.input_bytes > least]
    large.sort(key=lambda job: -job.input_bytes)
    rest = [job for job in in_order if job.input_bytes <= least]
    return [*(Unit((job,)) for job in large), *_batches(rest, tuning.batch)]


def _batches(jobs: Sequence[Job], size: int) -> list[Unit]:
    batches: list[list[Job]] = []
    filled = size
    for job in jobs:
        if filled >= size:
            batches.append([])
            filled = 0
        batches[-1].append(job)
        filled += job.input_bytes
    return [Unit(tuple(batch)) for batch in batches]
