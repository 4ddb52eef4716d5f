"""Merges on the CPU the tensors that the GPU cannot merge. The bits are the same."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence

from ...errors import counted
from ...plan.inputs import Stored
from ...plan.job import Job
from ..cpu.worker import CpuWorker
from ..worker import TensorReport


class CpuFallback:
    """Merges tensors on the CPU, one at a time, for the workers of all GPUs."""

    def __init__(self, reasons: Mapping[str, str], worker: CpuWorker | None) -> None:
        """`reasons`: by tensor name, why the GPU cannot merge it. `worker` is None if there are no such tensors."""
        self._reasons = reasons
        self._worker = worker
        self._lock = threading.Lock()
        self._merged: Counter[str] = Counter()

    def __contains__(self, name: str) -> bool:
        return name in self._reasons

    def merge(self, job: Job, direct: Sequence[Stored]) -> TensorReport:
        """As CpuWorker.merge."""
        assert self._worker is not None
        with self._lock:
            report = self._worker.merge(job, direct)
            self._merged[self._reasons[job.name]] += 1
        return report

    @property
    def notes(self) -> list[str]:
        """How many tensors were merged on the CPU, by reason."""
        return fallback_notes(self._merged)


def fallback_notes(reasons: Mapping[str, int]) -> list[str]:
    """Return a note for each reason. `reasons`: the number of tensors by reason."""
    return [
        f"{counted(number, 'tensor')} merged on the CPU: {reason}"
        for reason, number in reasons.items()
    ]
