"""The yardsticks of whole merges on a GPU: from the page cache to the device, and from the device to a file.

One thread, large `pread`s and `pwrite`s, an fsync, and two page-locked buffers: while the device copies one of
them, the other is read or written. Which pieces are fastest depends on the machine (plain_copy.py says more), so
a few are tried first, and what a merge is held against is the best of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import page_cache
from plain_copy import Copy, buffer

from fuseo1_kernels.engine.gpu.device import Device, Event

_PIECES = (1 << 20, 8 << 20, 32 << 20)


class DeviceCopy:
    """Copies in pieces of one size. The memory on both sides is made before any clock is started."""

    def __init__(self, device: Device, piece: int) -> None:
        self._piece = piece
        self._stream = device.stream()
        self._host = [device.allocate_pinned(piece) for _ in range(2)]
        with self._stream.current():
            self._there = [device.allocate(piece) for _ in range(2)]
        noise = buffer(piece)
        for host, there in zip(self._host, self._there, strict=True):
            host.view[:] = noise
            self._stream.copy(there, 0, host, 0, piece).synchronize()

    def read(self, inputs: Sequence[Path]) -> float:
        """Return the seconds until every byte of `inputs` has been in the device's memory."""
        behind: dict[int, Event] = {}
        slots = cycle(range(2))
        start = time.perf_counter()
        for file in inputs:
            descriptor, at, count = os.open(file, os.O_RDONLY), 0, 1
            while count:
                slot = next(slots)
                if slot in behind:
                    behind.pop(slot).synchronize()
                count = os.preadv(descriptor, [self._host[slot].view], at)
                if count:
                    to, of = self._there[slot], self._host[slot]
                    behind[slot] = self._stream.copy(to, 0, of, 0, count)
                at += count
            os.close(descriptor)
        for event in behind.values():
            event.synchronize()
        return time.perf_counter() - start

    def write(self, size: int, out: Path) -> tuple[float, float]:
        """Write `size` bytes of the device's to `out`, which is new; return the seconds, and fsync's."""
        starts = range(0, size, self._piece)
        os.sync()  # so that nothing else is being written
        start = time.perf_counter()
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        coming = self._fetch(0, size)
        for number, at in enumerate(starts):
            come = coming
            if number + 1 < len(starts):
                coming = self._fetch(number + 1, size)
            come.synchronize()
            left = self._host[number % 2].view[: size - at]
            while left:
                count = os.pwrite(descriptor, left, at)
                left, at = left[count:], at + count
        written = time.perf_counter()
        os.fsync(descriptor)
        synced = time.perf_counter()
        os.close(descriptor)
        return written - start, synced - written

    def _fetch(self, number: int, size: int) -> Event:
        count = min(self._piece, size - number * self._piece)
        host, there = self._host[number % 2], self._there[number % 2]
        return self._stream.copy(host, 0, there, 0, count)


@dataclass(frozen=True)
class DeviceCopies:
    """The best copies each way; `tried` has the seconds of all, by the bytes of their pieces."""

    reader: DeviceCopy
    writer: DeviceCopy
    tried: dict[str, dict[int, float]]

    def take(self, inputs: Sequence[Path], output_bytes: int, out: Path) -> Copy:
        """Do both, one after the other; `out` is deleted."""
        page_cache.warm(inputs)
        read = self.reader.read(inputs)
        write, sync = self.writer.write(output_bytes, out)
        out.unlink()
        return Copy(read, write, sync)


def try_copies(
    device: Device, inputs: Sequence[Path], output_bytes: int, out: Path
) -> DeviceCopies:
    """Find the best pieces, with one model and a quarter of the output; of two turns the second counts."""
    copies = {size: DeviceCopy(device, size) for size in _PIECES}
    read: dict[int, float] = {}
    write: dict[int, float] = {}
    page_cache.warm(inputs[:1])
    for _ in range(2):
        for size, copy in copies.items():
            read[size] = copy.read(inputs[:1])
            write[size] = sum(copy.write(output_bytes // 4, out))
            out.unlink()
    reader, writer = (copies[min(seconds, key=seconds.__getitem__)] for seconds in (read, write))
    tried = {"read and to the device": read, "to the host, write and fsync": write}
    return DeviceCopies(reader, writer, tried)
