"""What all workers of one GPU share: its memory, its streams, the ring of page-locked memory, the readers."""

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
    """How much one GPU's part of a merge may use.

    Attributes:
        workers: tensors, or groups of small ones, that are under way at the same time.
        readers: threads that read for them.
        slot: bytes that are copied at once, a power of two.
        region: bytes of the device's memory for tensors.
        work: the same for the survey that runs; one runs at a time.
        own: the same for what ops that wait allocate by themselves, through torch; likewise.
    """

    workers: int
    readers: int
    slot: int
    region: int
    work: int
    own: int = 0

    @property
    def slots_in(self) -> int:
        """Two more than readers: those of which the copies run."""
        return self.readers + 2

    @property
    def slots_out(self) -> int:
        return self.workers + 2

    @property
    def host_bytes(self) -> int:
        """Page-locked memory, and a buffer for each worker."""
        return (self.slots_in + self.slots_out + self.workers) * self.slot


class GpuContext:
    """One GPU during a merge. Three streams: copies in, kernels, copies out. MergeError if memory is short."""

    def __init__(self, device: Device, backend: GpuBackend, size: ContextSize) -> None:
        self.device, self.backend, self.size = device, backend, size
        with explained(device):
            self.memory = device.allocate(size.region + size.work)
            self.work = self.memory.tensor[size.region :]
            self.copies_in, self.kernels, self.copies_out = (device.stream() for _ in range(3))
            if size.own:
                # torch keeps it for this stream, and what is allocated there from now on comes out of it.
                with self.kernels.current():
                    device.allocate(size.own)
        self.regions = Regions(size.region)
        self.staging_in = StagingRing(device, size.slots_in, size.slot)
        self.staging_out = StagingRing(device, size.slots_out, size.slot)
        # A survey is many kernels in the same workspace: those of two must not mix. And `own` is enough for one op.
        self.enqueuing = threading.Lock()
        self._readers = ThreadPoolExecutor(size.readers, thread_name_prefix="fuseo1-gpu")

    def submit(self, read: Callable[[], T]) -> Future[T]:
        """Have a reader do it."""
        try:
            return self._readers.submit(read)
        except RuntimeError as error:  # there can be no more threads
            raise MergeError(f"{error}; lower --threads") from error

    def stop(self) -> None:
        """Have everyone who waits give up."""
        for waited_for in (self.regions, self.staging_in, self.staging_out):
            waited_for.close()

    def close(self) -> None:
        """Give the memory back, when all workers have ended, and no copy uses it any more."""
        self.stop()
        self._readers.shutdown(cancel_futures=True)
        for stream in (self.copies_in, self.kernels, self.copies_out):
            with suppress(RuntimeError):  # of a device that failed, and was told of
                stream.record().synchronize()
        del self.memory, self.work, self.staging_in, self.staging_out
        self.device.close()
