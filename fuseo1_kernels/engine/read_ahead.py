"""Brings what is merged next into the page cache, and takes it out again when it is merged."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Container, Sequence
from contextlib import suppress

from ..plan.job import Input, Job
from .schedule import Unit
from .tuning import DEFAULT_TUNING, Tuning

#: Threads that read ahead (docs/storage.md).
READERS = 2


def absent_inputs(job: Job) -> list[Input]:
    """The inputs that are not in the page cache, for certain."""
    return [x for x in job.inputs if x.source.is_cached(x.info) is False]


def forget(inputs: Sequence[Input]) -> None:
    """Take them out of the page cache."""
    for x in inputs:
        x.source.forget(x.info)


class UnitReads:
    """A unit, and what of its inputs is to be brought into the page cache and taken out again.

    `direct` says that it is more than there is room for: the worker reads, and drops, piece by piece.
    """

    def __init__(self, unit: Unit, room: int, skipped: Container[str]) -> None:
        self.jobs = unit.jobs
        self.input_bytes = unit.input_bytes
        inputs = [x for job in unit.jobs if job.name not in skipped for x in job.inputs]
        cached = [x.source.is_cached(x.info) for x in inputs]
        self.absent = [x for x, there in zip(inputs, cached, strict=True) if not there]
        # Where the system does not tell what is cached, what others have there must stay.
        self.to_forget = [x for x, there in zip(inputs, cached, strict=True) if there is False]
        self.direct = bool(self.absent) and unit.input_bytes > room
        self.unread: deque[list[Input]] = deque()
        if self.fed:
            by_model: dict[int, list[Input]] = {}
            for x in self.absent:
                by_model.setdefault(id(x.source), []).append(x)
            self.unread.extend(by_model.values())
        self.pending = len(self.unread)
        self.begun = self.taken = False

    def direct_inputs(self, job: Job) -> list[Input]:
        """Those of the unit's `job` for which its worker must see itself."""
        return [x for x in job.inputs if x in self.to_forget] if self.direct else []

    @property
    def fed(self) -> bool:
        """Whether readers bring it."""
        return bool(self.absent) and not self.direct


class ReadAhead:
    """Hands units to workers in order, each when its inputs are in the page cache.

    Every tensor is read twice, for survey and fuse. The page cache holds it in between, rather than memory
    of ours: nothing must fit, and where memory is short the system reads again. `room` bounds the bytes
    that are there because of us. Tensors named in `skipped` are not read ahead. `read` is the work of a
    reader, of which there may be any number.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        workers: int,
        room: int,
        skipped: Container[str] = (),
        tuning: Tuning = DEFAULT_TUNING,
    ) -> None:
        # Asked before anything is read: later the answer would be about what was read ahead.
        self._untaken = deque(UnitReads(unit, room, skipped) for unit in units)
        self._unread = deque(unit for unit in self._untaken if unit.fed)
        self._room = room
        self._tuning = tuning
        # Those that readers have begun and no worker is done with.
        self._begun: set[UnitReads] = set()
        self._ahead = self._held = 0
        self._working = workers
        self._closed = False
        self._changed = threading.Condition()

    @property
    def readers(self) -> int:
        """How many readers there is work for."""
        return min(READERS, sum(len(unit.unread) for unit in self._unread))

    @property
    def working(self) -> int:
        """How many workers have not seen the end yet."""
        return self._working

    def take(self) -> UnitReads | None:
        """Wait for the next unit; None: there are no more, and the worker is done."""
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
        """Take what was brought for a unit out of the page cache again."""
        forget(unit.to_forget)
        if unit.fed:
            with self._changed:
                self._begun.discard(unit)
                self._held -= unit.input_bytes
                self._changed.notify_all()

    def read(self) -> None:
        """Read ahead until there is no more, or `close` is called."""
        while (next_inputs := self._next_inputs()) is not None:
            unit, inputs = next_inputs
            try:
                for x in inputs:
                    self._bring(x)
            finally:
                with self._changed:
                    unit.pending -= 1
                    self._changed.notify_all()

    def close(self) -> None:
        """Have everyone who waits give up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def forget_rest(self) -> None:
        """Take out what was brought for nothing, when the readers and workers of a failed merge have ended."""
        while self._begun:
            forget(self._begun.pop().to_forget)

    def _next_inputs(self) -> tuple[UnitReads, list[Input]] | None:
        """What one model has of the next unit, when there is room for the unit."""
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
        return self._held + unit.input_bytes <= self._room and (
            unit.taken or self._ahead == 0 or ahead <= self._tuning.read_ahead
        )

    def _bring(self, x: Input) -> None:
        with suppress(Exception):  # advice: what is wrong is told by the worker, who reads it too
            step = self._tuning.step
            for start in range(0, x.info.nbytes, step):
                if self._closed:
                    return
                x.source.read_ahead(x.info, start, step)
