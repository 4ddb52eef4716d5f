"""Reads the inputs of the next units into the page cache, and drops them after the merge."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Container, Sequence
from contextlib import suppress

from ..plan.inputs import Stored
from ..plan.job import Job
from .schedule import Unit
from .tuning import DEFAULT_TUNING, Tuning

#: The most threads that read ahead (docs/storage.md).
READERS = 2


def absent_inputs(job: Job) -> list[Stored]:
    """Return the stored inputs that are certainly not in the page cache."""
    return [x for x in job.stored if x.source.is_cached(x.info) is False]


def forget(inputs: Sequence[Stored]) -> None:
    """Drop `inputs` from the page cache."""
    for x in inputs:
        x.source.forget(x.info)


class UnitReads:
    """A unit, and the state of its inputs in the page cache.

    A unit is `direct` if it exceeds the page cache granted to the merge. Its worker then reads ahead, and drops, piece
    by piece. The state of the page cache is asked for once, before anything is read.

    Attributes:
        jobs, input_bytes: the unit's.
        to_forget: inputs to drop after the merge: they were certainly not cached before.
        direct: whether the worker reads ahead by itself.
        unread: inputs that no reader has begun to read, one list per model.
        pending: lists of `unread` that are not yet read to the end.
        begun: whether a reader has begun with the unit.
        taken: whether a worker has the unit.
    """

    def __init__(self, unit: Unit, capacity: int, skipped: Container[str]) -> None:
        self.jobs = unit.jobs
        self.input_bytes = unit.input_bytes
        inputs = [x for job in unit.jobs if job.name not in skipped for x in job.stored]
        is_cached = [x.source.is_cached(x.info) for x in inputs]
        absent = [x for x, cached in zip(inputs, is_cached, strict=True) if not cached]
        # If the system cannot tell (None), other processes may have the file cached: it stays.
        self.to_forget = [x for x, cached in zip(inputs, is_cached, strict=True) if cached is False]
        self._dropped = set(map(id, self.to_forget))
        self.direct = bool(absent) and unit.input_bytes > capacity
        self.is_read_ahead = bool(absent) and not self.direct
        self.unread: deque[list[Stored]] = deque()
        if self.is_read_ahead:
            by_model: dict[int, list[Stored]] = {}
            for x in absent:
                by_model.setdefault(id(x.source), []).append(x)
            self.unread.extend(by_model.values())
        self.pending = len(self.unread)
        self.begun = self.taken = False

    def direct_inputs(self, job: Job) -> list[Stored]:
        """Return the stored inputs of `job` that its worker reads ahead and drops by itself."""
        return [x for x in job.stored if id(x) in self._dropped] if self.direct else []


class ReadAhead:
    """Hands units to workers in order, each once its inputs are in the page cache.

    Every tensor is read twice, for survey and fuse. In between the page cache holds it, not a buffer: no tensor is too
    large, and if memory is short the system reads the file again. Any number of threads may run `read`.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        workers: int,
        capacity: int,
        skipped: Container[str] = (),
        tuning: Tuning = DEFAULT_TUNING,
    ) -> None:
        """Prepare to hand out `units`.

        Args:
            units: in the order in which workers take them.
            workers: number of workers.
            capacity: the most bytes of the page cache to fill.
            skipped: names of tensors that are not read ahead.
            tuning: `step` and `read_ahead` apply.
        """
        self._untaken = deque(UnitReads(unit, capacity, skipped) for unit in units)
        self._unread = deque(unit for unit in self._untaken if unit.is_read_ahead)
        self._capacity = capacity
        self._tuning = tuning
        # Units that a reader has begun and no worker has finished.
        self._begun: set[UnitReads] = set()
        self._held = 0  # bytes of inputs in `_begun`
        self._ahead = 0  # bytes of these that no worker has taken
        self._working = workers
        self._closed = False
        self._changed = threading.Condition()

    @property
    def readers(self) -> int:
        """The number of readers to run."""
        return min(READERS, sum(len(unit.unread) for unit in self._unread))

    @property
    def working(self) -> int:
        """The number of workers that may still get a unit."""
        return self._working

    def take(self) -> UnitReads | None:
        """Return the next unit, once its inputs are read; None if no unit is left."""
        with self._changed:
            if not self._untaken or self._closed:
                self._working -= 1
                return None
            unit = self._untaken.popleft()
            unit.taken = True
            if unit.begun:
                self._ahead -= unit.input_bytes
                self._changed.notify_all()
            self._changed.wait_for(lambda: unit.pending == 0 or self._closed)
            return unit

    def done(self, unit: UnitReads) -> None:
        """Drop the inputs of a merged unit from the page cache."""
        forget(unit.to_forget)
        if unit.is_read_ahead:
            with self._changed:
                self._begun.discard(unit)
                self._held -= unit.input_bytes
                self._changed.notify_all()

    def read(self) -> None:
        """Read ahead until everything is read or `close` is called."""
        while (next_inputs := self._next_inputs()) is not None:
            unit, inputs = next_inputs
            try:
                for x in inputs:
                    self._read_input(x)
            finally:
                with self._changed:
                    unit.pending -= 1
                    self._changed.notify_all()

    def close(self) -> None:
        """End all waits; `take` and `read` return."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def forget_rest(self) -> None:
        """Drop the inputs of unfinished units, after all readers and workers of a failed merge have ended."""
        while self._begun:
            forget(self._begun.pop().to_forget)

    def _next_inputs(self) -> tuple[UnitReads, list[Stored]] | None:
        """Wait until the next unit fits; return it and the inputs of one of its models. None: nothing left to read."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._unread or self._has_room(self._unread[0])
            )
            if self._closed or not self._unread:
                return None
            unit = self._unread[0]
            if not unit.begun:
                unit.begun = True
                self._begun.add(unit)
                self._held += unit.input_bytes
                self._ahead += 0 if unit.taken else unit.input_bytes
            inputs = unit.unread.popleft()
            if not unit.unread:
                self._unread.popleft()
            return unit, inputs

    def _has_room(self, unit: UnitReads) -> bool:
        if unit.begun:
            return True
        ahead = self._ahead + unit.input_bytes
        return self._held + unit.input_bytes <= self._capacity and (
            unit.taken or self._ahead == 0 or ahead <= self._tuning.read_ahead
        )

    def _read_input(self, x: Stored) -> None:
        with suppress(Exception):  # only advice: the worker reads the same bytes and reports errors
            step = self._tuning.step
            for start in range(0, x.info.nbytes, step):
                if self._closed:
                    return
                x.source.read_ahead(x.info, start, step)
