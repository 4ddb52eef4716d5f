"""The workers of a merge on the CPU: how many, and with how much memory each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .backends import Backend
from .errors import MergeError
from .plan import Plan
from .streaming import Memory, TensorMerger, memory_floor, plan_memory
from .threads import resolve_threads
from .work import Work

# Below this a worker's chunks get small; fewer workers with more threads each serve better.
_LEAST_WORKER_MEMORY = 48 << 20
# Buffers cost time to be touched for the first time: a small merge gets along with this part of its inputs,
# or with this much, whatever it may use.
_MEMORY_SHARE = 16
_ENOUGH_MEMORY = 256 << 20


@dataclass(frozen=True)
class OnCpu:
    """The arithmetic done by a backend on the CPU."""

    backend: Backend

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def description(self) -> str:
        return self.backend.description

    def crew(self, plan: Plan, threads: int | None, max_memory: int, work: Work) -> CpuCrew:
        return CpuCrew(self.backend, plan, threads, max_memory, work)

    @staticmethod
    def host_memory(plan: Plan, threads: int | None, max_memory: int) -> tuple[int, list[str]]:
        workers, memory = divide(plan, threads, max_memory)
        return workers * memory.total, []


class CpuCrew:
    """One worker a core, as far as memory goes. MergeError if `max_memory` is too little."""

    def __init__(
        self, backend: Backend, plan: Plan, threads: int | None, max_memory: int, work: Work
    ) -> None:
        surveys = work.surveys_at_once
        self.workers, self._memory = divide(plan, threads, max_memory, surveys)
        self._threads = resolve_threads(threads)
        self._backend = backend
        self._work = work

    def merger(self, _number: int, working: Callable[[], int]) -> TensorMerger:
        return TensorMerger(
            self._backend,
            self._memory,
            self._work,
            threads=lambda: max(1, self._threads // max(1, working())),
        )

    def stop(self) -> None:
        """They wait for nobody."""

    def close(self) -> None:
        """Their memory goes with them."""

    @property
    def notes(self) -> list[str]:
        return []


def divide(
    plan: Plan, threads: int | None, max_memory: int, surveys: int = 1
) -> tuple[int, Memory]:
    """(workers, memory of each) for this plan, `surveys` of a tensor at once; MergeError if it is too small."""
    threads = resolve_threads(threads)
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
    return workers, plan_memory(plan.jobs, usable // workers, threads)
