"""Divides device memory into regions, one for each group of tensors in progress."""

from __future__ import annotations

import threading
from collections import deque

from .staging import Stopped

#: Bytes. Everything in device memory begins at a multiple of this, where loads are fastest.
ALIGNMENT = 256


def aligned(nbytes: int) -> int:
    """Round up to a multiple of ALIGNMENT."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Regions:
    """Regions of `nbytes` bytes of device memory, granted in the order of the requests. Any thread may use it.

    A request for a large region is not overtaken by later requests for small ones.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._taken: dict[int, int] = {}  # start -> end
        self._waiting: deque[object] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def take(self, nbytes: int) -> int:
        """Wait for a region of `nbytes` bytes; return its offset. Raises Stopped after `close`."""
        if not 0 < nbytes <= self.nbytes:
            raise ValueError(f"{nbytes} bytes of {self.nbytes}")
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(
                lambda: (
                    self._closed or (self._waiting[0] is ticket and self._find(nbytes) is not None)
                )
            )
            start = self._find(nbytes)
            if self._closed or start is None:
                raise Stopped
            self._waiting.popleft()
            self._taken[start] = start + aligned(nbytes)
            self._changed.notify_all()
            return start

    def give(self, start: int) -> None:
        """Return the region that begins at `start`. Nothing on the device uses it any more."""
        with self._changed:
            del self._taken[start]
            self._changed.notify_all()

    def close(self) -> None:
        """End all waits; `take` raises Stopped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _find(self, nbytes: int) -> int | None:
        """Return the offset of the first gap of `nbytes` bytes; None if there is none."""
        start = 0
        for begin, end in sorted(self._taken.items()):
            if begin - start >= nbytes:
                return start
            start = end
        return start if self.nbytes - start >= nbytes else None
