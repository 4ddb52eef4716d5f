"""The workers of a merge on the CPU: how many, and with how much memory each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...backends.interface import Backend
from ...plan.plan import Plan
from ...system import resolve_threads
from ..worker import Work
from .memory import divide
from .worker import TensorMerger


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
