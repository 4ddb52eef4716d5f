"""A device's memory, given out in regions to tensors that are merged at the same time."""

from __future__ import annotations

import threading
from collections import deque

from .staging import Stopped

#: Everything in a device's memory begins at multiples of this, where its loads are fastest.
ALIGNMENT = 256


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Regions:
    """Regions of `nbytes` bytes, in the order in which they are asked for: a large one is not passed by."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._taken: dict[int, int] = {}  # start -> end
        self._waiting: deque[object] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def take(self, nbytes: int) -> int:
        """Wait for a region of `nbytes` bytes; its start. Raises Stopped when the reservation is closed."""
        if not 0 < nbytes <= self.nbytes:
            raise ValueError(f"{nbytes} bytes of {self.nbytes}")
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(
                lambda: (
                    self._closed or (self._waiting[0] is ticket and self._place(nbytes) is not None)
                )
            )
            start = self._place(nbytes)
            if self._closed or start is None:
                raise Stopped
            self._waiting.popleft()
            self._taken[start] = start + aligned(nbytes)
            self._changed.notify_all()
            return start

    def give(self, start: int) -> None:
        """Let others have the region: nothing on the device uses it any more."""
        with self._changed:
            del self._taken[start]
            self._changed.notify_all()

    def close(self) -> None:
        """Have everyone who waits give up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _place(self, nbytes: int) -> int | None:
        """The first gap of so many bytes."""
        start = 0
        for begin, end in sorted(self._taken.items()):
            if begin - start >= nbytes:
                return start
            start = end
        return start if self.nbytes - start >= nbytes else None
