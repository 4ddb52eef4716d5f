"""What the engine needs of a GPU: memory on both sides, streams, events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from ...errors import MergeError


class Event(Protocol):
    """A point in a stream."""

    def synchronize(self) -> None:
        """Return when the device has passed it. Raises RuntimeError if the device failed."""


class DeviceMemory(Protocol):
    """Bytes of a device's memory, or of host memory that the device copies from and to by itself."""

    @property
    def address(self) -> int: ...

    @property
    def tensor(self) -> Any:
        """All of it as a torch tensor of bytes; what kernels take are slices of it."""


class HostMemory(DeviceMemory, Protocol):
    @property
    def view(self) -> memoryview: ...


class Stream(Protocol):
    """Copies and kernels that a device does one after the other. Nothing here waits for it."""

    def copy(
        self, to: DeviceMemory, to_start: int, of: DeviceMemory, of_start: int, nbytes: int
    ) -> Event:
        """Copy bytes between the host's memory and the device's; the event is behind the copy."""

    def record(self) -> Event: ...

    def wait(self, event: Event) -> None:
        """What is enqueued from now on begins when the device has passed `event`."""

    def current(self) -> AbstractContextManager[None]:
        """Within the context this thread enqueues kernels here."""


class Device(Protocol):
    """One GPU. Whatever it cannot do raises RuntimeError, which `explained` turns into a MergeError."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    def free_bytes(self) -> int:
        """Bytes of its memory that nothing uses."""

    def allocate(self, nbytes: int) -> DeviceMemory:
        """DeviceMemory for the stream that is current."""

    def allocate_pinned(self, nbytes: int) -> HostMemory:
        """Page-locked host memory; a power of two wastes none."""

    def stream(self) -> Stream: ...

    def close(self) -> None:
        """Give device memory that was let go back to the system. torch keeps page-locked memory for later use."""


@contextmanager
def explained(device: Device) -> Iterator[None]:
    """Turn what torch and the kernels raise for a failing device into one message."""
    try:
        yield
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise MergeError(
                f"{device.name}: out of memory; lower --max-gpu-memory, or end what else uses the GPU"
            ) from error
        reason = (str(error).splitlines() or ["it failed"])[0]
        raise MergeError(f"{device.name}: {reason}") from error
