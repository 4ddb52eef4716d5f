"""The protocol of a GPU as the engine uses it: device memory, page-locked memory, streams, events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from ...errors import MergeError


class Event(Protocol):
    """A point in a stream."""

    def synchronize(self) -> None:
        """Wait until the device has passed the event. Raises RuntimeError if the device failed."""


class DeviceMemory(Protocol):
    """Device memory, or page-locked host memory, which the device can copy by itself."""

    @property
    def address(self) -> int:
        """Address of the first byte."""

    @property
    def tensor(self) -> Any:
        """All of the memory as a uint8 torch tensor. Kernels take slices of it."""


class HostMemory(DeviceMemory, Protocol):
    """Page-locked host memory."""

    @property
    def view(self) -> memoryview:
        """All of the memory as bytes."""


class Stream(Protocol):
    """A queue of copies and kernels, which the device executes in order. None of the methods waits for the device."""

    def copy(
        self, to: DeviceMemory, to_start: int, of: DeviceMemory, of_start: int, nbytes: int
    ) -> Event:
        """Enqueue a copy of `nbytes` bytes between host and device memory; return an event after the copy."""

    def record(self) -> Event:
        """Return an event after everything that is enqueued."""

    def wait(self, event: Event) -> None:
        """Delay everything enqueued from now on until the device has passed `event`."""

    def current(self) -> AbstractContextManager[None]:
        """Within the context, kernels of this thread are enqueued in this stream."""


class Device(Protocol):
    """One GPU. Its methods raise RuntimeError on failure, which `explained` turns into a MergeError."""

    @property
    def name(self) -> str:
        """For example "cuda:0"."""

    @property
    def description(self) -> str:
        """The model and the name."""

    def free_bytes(self) -> int:
        """Return the bytes of free device memory."""

    def allocate(self, nbytes: int) -> DeviceMemory:
        """Allocate device memory for the current stream."""

    def allocate_pinned(self, nbytes: int) -> HostMemory:
        """Allocate page-locked host memory. It takes the next power of two bytes."""

    def stream(self) -> Stream:
        """Create a stream."""

    def close(self) -> None:
        """Return freed device memory to the system. torch keeps page-locked memory for later use."""


@contextmanager
def explained(device: Device) -> Iterator[None]:
    """Turn a RuntimeError of torch or the kernels into a MergeError of one line that names the device."""
    try:
        yield
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise MergeError(
                f"{device.name}: out of memory; lower --max-gpu-memory, or end what else uses the GPU"
            ) from error
        reason = (str(error).splitlines() or ["it failed"])[0]
        raise MergeError(f"{device.name}: {reason}") from error
