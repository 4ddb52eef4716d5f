"""The context that all workers of one GPU share: its memory, streams, staging rings and readers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from ...backends.interface import GpuBackend
from ...errors import MergeError
from .device import Device, explained
from .regions import Regions
from .staging import StagingRing

T = TypeVar("T")


@dataclass(frozen=True)
class ContextSize:
    """The sizes of one GPU's context.

    Attributes:
        workers: number of workers. Each has one tensor, or one group of small tensors, in progress.
        readers: number of threads that read for them.
        slot: bytes of a staging slot, a power of two.
        region_bytes: bytes of device memory for tensors.
        workspace_bytes: bytes of device memory for the workspace of a survey. One survey runs at a time.
        torch_bytes: bytes of device memory that a blocking op allocates through torch. One op runs at a time.
    """

    workers: int
    readers: int
    slot: int
    region_bytes: int
    workspace_bytes: int
    torch_bytes: int = 0

    @property
    def slots_in(self) -> int:
        """Staging slots for inputs: one for each reader, and two whose copies are in progress."""
        return self.readers + 2

    @property
    def slots_out(self) -> int:
        """Staging slots for outputs."""
        return self.workers + 2

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory: staging slots, and a buffer of one slot for each worker."""
        return (self.slots_in + self.slots_out + self.workers) * self.slot


class GpuContext:
    """One GPU during a merge, with three streams: copies in, kernels, copies out."""

    def __init__(self, device: Device, backend: GpuBackend, size: ContextSize) -> None:
        """Allocate the device memory. Raises MergeError if that fails."""
        self.device, self.backend, self.size = device, backend, size
        with explained(device):
            self.copies_in, self.kernels, self.copies_out = (device.stream() for _ in range(3))
            with self.kernels.current():
                self.memory = device.allocate(size.region_bytes + size.workspace_bytes)
                if size.torch_bytes:
                    # torch's allocator caches the freed memory for this stream and serves later allocations from it.
                    device.allocate(size.torch_bytes)
            # The memory's earlier owner may still use it, in the stream that it is allocated in alone.
            self.copies_in.wait(self.kernels.record())
            self.workspace = self.memory.tensor[size.region_bytes :]
        self.regions = Regions(size.region_bytes)
        self.staging_in = StagingRing(device, size.slots_in, size.slot)
        self.staging_out = StagingRing(device, size.slots_out, size.slot)
        # Held while a tensor's kernels are enqueued: all use one workspace, and `torch_bytes` suffice for one op.
        self.enqueuing = threading.Lock()
        self._readers = ThreadPoolExecutor(size.readers, thread_name_prefix="fuseo1-gpu")

    def submit(self, read: Callable[[], T]) -> Future[T]:
        """Run `read` in a reader thread. Raises MergeError if no thread can be started."""
        try:
            return self._readers.submit(read)
        except RuntimeError as error:
            raise MergeError(f"{error}; lower --threads") from error

    def stop(self) -> None:
        """End all waits for regions and slots; they raise Stopped."""
        for resource in (self.regions, self.staging_in, self.staging_out):
            resource.close()

    def close(self) -> None:
        """Wait for the streams and free the memory. All workers have ended."""
        self.stop()
        self._readers.shutdown(cancel_futures=True)
        for stream in (self.copies_in, self.kernels, self.copies_out):
            with suppress(RuntimeError):  # a failed device has already raised an error
                stream.record().synchronize()
        del self.memory, self.workspace, self.staging_in, self.staging_out
        self.device.close()
