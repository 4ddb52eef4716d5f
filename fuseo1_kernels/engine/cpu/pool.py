"""The executor and the worker pool of a merge on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...backends.interface import Backend
from ...plan.plan import Plan
from ...system import resolve_threads
from ..headers_memory import headers_memory
from ..options import MergeOptions
from ..worker import MergeContext
from .memory import divide_memory
from .worker import CpuWorker


@dataclass(frozen=True)
class CpuExecutor:
    """A backend on the CPU."""

    backend: Backend

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def description(self) -> str:
        return self.backend.description

    def pool(self, plan: Plan, options: MergeOptions, context: MergeContext) -> CpuPool:
        return CpuPool(self.backend, plan, options, context)

    @staticmethod
    def host_memory(plan: Plan, options: MergeOptions) -> tuple[int, list[str]]:
        workers, memory = divide_memory(plan, options)
        return workers * memory.total + headers_memory(plan), []


class CpuPool:
    """One worker per thread, fewer if memory is short."""

    def __init__(
        self, backend: Backend, plan: Plan, options: MergeOptions, context: MergeContext
    ) -> None:
        """Divide the memory. Raises MergeError if `options.max_memory` is too little."""
        self.size, self._memory = divide_memory(plan, options, context.surveys_at_once)
        self._threads = resolve_threads(options.threads)
        self._backend = backend
        self._context = context

    def worker(self, _number: int, working: Callable[[], int]) -> CpuWorker:
        return CpuWorker(
            self._backend,
            self._memory,
            self._context,
            threads=lambda: max(1, self._threads // max(1, working())),
        )

    def stop(self) -> None:
        """No-op: CPU workers never block on each other."""

    def close(self) -> None:
        """No-op: each worker frees its own memory."""

    @property
    def notes(self) -> list[str]:
        return []
