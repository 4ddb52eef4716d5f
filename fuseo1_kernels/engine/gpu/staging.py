"""Staging slots: page-locked host memory for copies to and from a device, reused throughout a merge."""

from __future__ import annotations

import threading
from collections import deque

from ...errors import MergeError
from .device import Device, Event, HostMemory


class Stopped(MergeError):
    """The merge is stopping; the wait was ended."""

    def __init__(self) -> None:
        super().__init__("the merge was stopped")


class Slot:
    """A staging slot. `copied` is the event after the last copy from it; None if no copy can be in progress."""

    def __init__(self, memory: HostMemory) -> None:
        self.memory = memory
        self.view = memory.view
        self.copied: Event | None = None


class StagingRing:
    """At most `slots` staging slots of `nbytes` bytes, allocated when first needed. Any thread may use it.

    A slot may be returned while a copy still reads it, if its `copied` is set.
    """

    def __init__(self, device: Device, slots: int, nbytes: int) -> None:
        self.nbytes = nbytes
        self._device = device
        self._unallocated = slots
        # Slots in the order in which they were returned, so that the oldest copy is waited for first.
        self._free: deque[Slot] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def take(self) -> Slot:
        """Wait for a slot that nothing uses any more. Raises Stopped after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._unallocated or self._closed)
            slot = self._next()
        return self._ready(slot)

    def take_if_free(self) -> Slot | None:
        """As `take`, but return None instead of waiting for another thread."""
        with self._changed:
            if not (self._free or self._unallocated or self._closed):
                return None
            slot = self._next()
        return self._ready(slot)

    def give(self, slot: Slot) -> None:
        """Return a slot."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify()

    def close(self) -> None:
        """End all waits; `take` raises Stopped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next(self) -> Slot | None:
        """Return a free slot, or None if the caller must allocate one. That takes milliseconds and needs no lock."""
        if self._closed:
            raise Stopped
        if self._unallocated:
            self._unallocated -= 1
            return None
        return self._free.popleft()

    def _ready(self, slot: Slot | None) -> Slot:
        """Allocate a slot if there is none; wait for the copy from it."""
        if slot is None:
            try:
                return Slot(self._device.allocate_pinned(self.nbytes))
            except RuntimeError as error:
                self._device.free_bytes()  # if the device itself has failed, this raises its error instead
                raise MergeError(
                    f"{self.nbytes >> 10} KiB of page-locked memory cannot be had; lower --max-memory"
                ) from error
        if slot.copied:
            slot.copied.synchronize()
            slot.copied = None
        return slot
