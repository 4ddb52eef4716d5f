"""Page-locked host memory for copies to and from a device, in slots that are used over and over."""

from __future__ import annotations

import threading
from collections import deque

from ...errors import MergeError
from .device import Device, Event, HostMemory


class Stopped(MergeError):
    """The merge ends: what was waited for will not come."""

    def __init__(self) -> None:
        super().__init__("the merge was stopped")


class Slot:
    """A piece of a ring. `copied` is behind the last copy from it, where one may still be under way."""

    def __init__(self, memory: HostMemory) -> None:
        self.memory = memory
        self.view = memory.view
        self.copied: Event | None = None


class StagingRing:
    """At most `slots` slots of `nbytes` bytes, made when they are first needed. Any thread may use it.

    Who gives back a slot that a copy may still read says so in its `copied`.
    """

    def __init__(self, device: Device, slots: int, nbytes: int) -> None:
        self.nbytes = nbytes
        self._device = device
        self._unmade = slots
        # The one whose copy began first comes first.
        self._free: deque[Slot] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def take(self) -> Slot:
        """Wait for a slot that nothing uses any more. Raises Stopped when the ring is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._unmade or self._closed)
            slot = self._next()
        return self._ready(slot)

    def take_if_free(self) -> Slot | None:
        """As `take`; None where it would wait for another thread."""
        with self._changed:
            if not (self._free or self._unmade or self._closed):
                return None
            slot = self._next()
        return self._ready(slot)

    def give(self, slot: Slot) -> None:
        """Let others have the slot."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify()

    def close(self) -> None:
        """Have everyone who waits give up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next(self) -> Slot | None:
        """A slot that was given back; None: one is to be made, which takes milliseconds."""
        if self._closed:
            raise Stopped
        if self._unmade:
            self._unmade -= 1
            return None
        return self._free.popleft()

    def _ready(self, slot: Slot | None) -> Slot:
        if slot is None:
            try:
                return Slot(self._device.allocate_pinned(self.nbytes))
            except RuntimeError as error:
                self._device.free_bytes()  # a device that failed before fails here again, and is told of
                raise MergeError(
                    f"{self.nbytes >> 10} KiB of page-locked memory cannot be had; lower --max-memory"
                ) from error
        if slot.copied:
            slot.copied.synchronize()
            slot.copied = None
        return slot
