"""What every worker of a merge is given, on whatever processor it works."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..backends.contract import Request
from ..backends.results import SurveyResult
from ..checkpoint.journal import TensorRecord
from ..errors import MergeError
from ..plan.job import Input, Job
from ..plan.plan import Plan
from .nonfinite import JobGuard
from .options import MergeOptions
from .survey_cache import SurveyCache
from .tuning import DEFAULT_TUNING, Tuning


class Destination(Protocol):
    """Where merged bytes go; a Sink is one."""

    def write(self, name: str, start: int, view: memoryview) -> None: ...


@dataclass(frozen=True)
class TensorReport:
    """What happened to one tensor: what the journal keeps of it, and the bytes that were read."""

    record: TensorRecord
    bytes_read: int


@dataclass(frozen=True)
class MergeContext:
    """Where merged bytes go, and how.

    Attributes:
        destination: takes merged bytes.
        nonfinite: "error" or "propagate".
        advance: is told of every byte read (once) or written, from any thread.
        stop: set when the merge is to end early.
        surveys: finds and keeps surveys; None: every tensor is surveyed.
        tuning: sizes of chunks, batches and copies.
    """

    destination: Destination
    nonfinite: str
    advance: Callable[[int], None]
    stop: threading.Event
    surveys: SurveyCache | None = None
    tuning: Tuning = DEFAULT_TUNING

    @property
    def surveys_at_once(self) -> int:
        """The most surveys of one tensor that are made in the same read."""
        return self.surveys.at_once if self.surveys else 1

    def go_on(self) -> None:
        """Raise MergeError if the merge is to end."""
        if self.stop.is_set():
            raise MergeError("the merge was stopped")

    def guard(self, job: Job) -> JobGuard:
        """Decides on the non-finite elements of `job`."""
        return JobGuard(self.nonfinite, job)

    def look_up(self, job: Job, request: Request) -> tuple[SurveyResult | None, list[Request]]:
        """The survey of `job` that is kept, if one is, and what to survey now, `request` first."""
        return self.surveys.look_up(job, request) if self.surveys else (None, [request])


class Worker(Protocol):
    """One worker."""

    @property
    def scratch(self) -> memoryview:
        """Room to read into, free between tensors."""

    def merge_all(
        self, jobs: Sequence[Job], direct: Callable[[Job], Sequence[Input]]
    ) -> dict[str, TensorReport]:
        """Merge `jobs` and write the results; `direct` names those inputs of a job that others do not read ahead.

        Raises MergeError, naming tensor and model.
        """


class WorkerPool(Protocol):
    """All workers of a merge."""

    @property
    def size(self) -> int: ...

    def worker(self, number: int, working: Callable[[], int]) -> Worker:
        """Worker `number`, made in its own thread; `working` says how many have work left."""

    def stop(self) -> None:
        """Have workers that wait for one another give up; `MergeContext.stop` is set."""

    def close(self) -> None:
        """Give everything back, when all workers have ended."""

    @property
    def notes(self) -> list[str]:
        """What is worth knowing of the work that was done."""


class Executor(Protocol):
    """Where a merge's arithmetic is done."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    def pool(self, plan: Plan, options: MergeOptions, context: MergeContext) -> WorkerPool:
        """All workers for `plan`. MergeError if there is too little memory."""

    def host_memory(self, plan: Plan, options: MergeOptions) -> tuple[int, list[str]]:
        """Most bytes of the host's memory that they will take, and what is worth knowing. MergeError likewise."""
