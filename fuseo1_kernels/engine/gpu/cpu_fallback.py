"""Tensors that a GPU cannot take are merged by the CPU, to the same bits."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence

from ...errors import counted
from ...plan.job import Input, Job
from ..cpu.worker import CpuWorker
from ..worker import TensorReport


class CpuFallback:
    """Merges the tensors named in `reasons`, one at a time; `worker` is None where there are none."""

    def __init__(self, reasons: Mapping[str, str], worker: CpuWorker | None) -> None:
        self._reasons = reasons
        self._worker = worker
        self._lock = threading.Lock()
        self._merged: Counter[str] = Counter()

    def __contains__(self, name: str) -> bool:
        return name in self._reasons

    def merge(self, job: Job, direct: Sequence[Input]) -> TensorReport:
        """As CpuWorker.merge."""
        assert self._worker is not None
        with self._lock:
            report = self._worker.merge(job, direct)
            self._merged[self._reasons[job.name]] += 1
        return report

    @property
    def notes(self) -> list[str]:
        """How many tensors it merged, and why."""
        return fallback_notes(self._merged)


def fallback_notes(reasons: Mapping[str, int]) -> list[str]:
    """A note for each reason, with the number of tensors that the CPU merges for it."""
    return [
        f"{counted(number, 'tensor')} merged on the CPU: {reason}"
        for reason, number in reasons.items()
    ]
