"""The interfaces of workers, pools and executors, and the context that all workers of a merge share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from ..backends.contract import Request
from ..backends.results import SurveyResult
from ..checkpoint.journal import TensorRecord
from ..errors import CheckpointError, MergeError
from ..plan.inputs import Stored
from ..plan.job import Job
from ..plan.plan import Plan
from .nonfinite import JobGuard
from .options import MergeOptions
from .survey_cache import SurveyCache
from .tuning import DEFAULT_TUNING, Tuning


class Destination(Protocol):
    """Takes merged bytes. A Sink is one."""

    def write(self, name: str, start: int, view: memoryview) -> None:
        """Write `view` to the tensor `name`, from its byte `start` on."""


@dataclass(frozen=True)
class TensorReport:
    """The report on one merged tensor: the journal's record, and the bytes that were read."""

    record: TensorRecord
    bytes_read: int


@dataclass(frozen=True)
class MergeContext:
    """The context of a merge, shared by all its workers.

    Attributes:
        destination: takes merged bytes.
        nonfinite: "error" or "propagate".
        advance: reports bytes: each input byte once, when it is first read, and each byte written. Any thread calls it.
        stop: set when the merge must end early.
        surveys: finds and keeps surveys. None: every tensor is surveyed.
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
        """The most surveys of one tensor in the same read."""
        return self.surveys.at_once if self.surveys else 1

    def check_stop(self) -> None:
        """Raise MergeError if the merge must end."""
        if self.stop.is_set():
            raise MergeError("the merge was stopped")

    def guard(self, job: Job) -> JobGuard:
        """Return the guard that decides on the non-finite elements of `job`."""
        return JobGuard(self.nonfinite, job)

    def look_up(self, job: Job, request: Request) -> tuple[SurveyResult | None, list[Request]]:
        """As SurveyCache.look_up. Without a cache, no survey is kept and only `request` is missing."""
        return self.surveys.look_up(job, request) if self.surveys else (None, [request])


@contextmanager
def unchanging(job: Job) -> Iterator[list[tuple[int, int]]]:
    """Hold the files of `job`'s stored inputs open, and yield (descriptor, byte offset) of each.

    In the end all of them must be what they were when their headers were read. If a merge fails on what cannot be, such
    as a file that has other bytes in the second read than in the first, the error says so, too. Raises CheckpointError.
    """

    stored = job.stored

    def check() -> None:
        for x in stored:
            x.source.check_unchanged(x.info.file)

    with ExitStack() as stack:
        places = [stack.enter_context(x.source.place(x.info)) for x in stored]
        try:
            yield places
        except CheckpointError:
            raise
        except Exception:
            check()
            raise
        check()


class Worker(Protocol):
    """Merges tensors, in one thread."""

    @property
    def scratch(self) -> memoryview:
        """A buffer that is free between tensors."""

    def merge_all(
        self, jobs: Sequence[Job], direct: Callable[[Job], Sequence[Stored]]
    ) -> dict[str, TensorReport]:
        """Merge `jobs` and write the results; return a report by tensor name.

        Args:
            jobs: tensors of one unit.
            direct: returns those stored inputs of a job that no reader reads ahead.

        Raises:
            MergeError: names the tensor and the model.
        """


class WorkerPool(Protocol):
    """All workers of a merge, and the memory that they share."""

    @property
    def size(self) -> int:
        """The number of workers."""

    def worker(self, number: int, working: Callable[[], int]) -> Worker:
        """Return worker `number`. Called in that worker's thread; `working` returns how many workers have work left."""

    def stop(self) -> None:
        """Wake workers that wait for each other, so that they end. `MergeContext.stop` is already set."""

    def close(self) -> None:
        """Free all resources. All workers have ended."""

    @property
    def notes(self) -> list[str]:
        """Remarks on the finished merge, for its result."""


class Executor(Protocol):
    """A backend, and the CPU or the GPUs that it runs on."""

    @property
    def name(self) -> str:
        """The backend's name."""

    @property
    def description(self) -> str:
        """The backend and its hardware, for messages."""

    def pool(self, plan: Plan, options: MergeOptions, context: MergeContext) -> WorkerPool:
        """Return the workers for `plan`. Raises MergeError if there is too little memory."""

    def host_memory(self, plan: Plan, options: MergeOptions) -> tuple[int, list[str]]:
        """Return the most bytes of host memory that the workers use, and notes. Raises MergeError as `pool`."""
