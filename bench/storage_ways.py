"""The ways of reading and writing files that bench/storage.py measures, one class each."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from fuseo1_kernels.checkpoint.page_cache import WriteBehind

UNIT = 8 << 20
#: As tensors are: neither pages nor folios.
_UNALIGNED = 7_716_416
_FOLIO = 2 << 20
#: How far ahead of the readers pages are asked for, in rounds of 8 MiB of every file, and in what steps.
_AHEAD = 2
_STEP = 512 << 10
#: Linux 6.14 and later: pages leave the cache as soon as they have been read or written.
_RWF_DONTCACHE = 0x80
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Reads:
    """Reads files by pread; unit n is 8 MiB of file n modulo their number."""

    name: ClassVar[str] = "pread 8 MiB"
    flags: ClassVar[int] = 0
    open_flags: ClassVar[int] = 0
    unit: ClassVar[int] = UNIT

    def __init__(self, files: Sequence[Path]) -> None:
        self.sizes = [file.stat().st_size for file in files]
        self.descriptors = [os.open(file, os.O_RDONLY | self.open_flags) for file in files]
        self.rounds = -(-max(self.sizes) // self.unit)
        self.units = self.rounds * len(files)

    def read(self, number: int, piece: memoryview) -> None:
        """Read unit `number` into `piece`."""
        file, start, end = self.extent(number)
        begin = start
        while start < end:
            # O_DIRECT wants whole blocks; at the end of a file there is less than was asked for.
            at = start - begin
            start += os.preadv(self.descriptors[file], [piece[at : self.unit]], start, self.flags)

    def extent(self, number: int) -> tuple[int, int, int]:
        """The file of unit `number`, its start and its end there; the end of no bytes may lie before."""
        turn, file = divmod(number, len(self.descriptors))
        return file, turn * self.unit, min((turn + 1) * self.unit, self.sizes[file])

    def close(self) -> None:
        """Let go of the files."""
        for descriptor in self.descriptors:
            os.close(descriptor)


class ReadsAhead(Reads):
    """The kernel is told of each round two rounds before it is read, in steps of 512 KiB."""

    name = "pread 8 MiB, WILLNEED 64 MiB ahead"

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(files)
        self._told = 0
        self._lock = threading.Lock()

    def read(self, number: int, piece: memoryview) -> None:
        wanted = min(number // len(self.descriptors) + _AHEAD + 1, self.rounds)
        with self._lock:
            while self._told < wanted:
                self.tell(self._told)
                self._told += 1
        super().read(number, piece)

    def tell(self, turn: int) -> None:
        """Ask for a round of units."""
        for descriptor, size in zip(self.descriptors, self.sizes, strict=True):
            for start in range(turn * UNIT, min((turn + 1) * UNIT, size), _STEP):
                os.posix_fadvise(descriptor, start, _STEP, os.POSIX_FADV_WILLNEED)


class ReadsDirect(Reads):
    """Past the page cache."""

    name = "pread 8 MiB, O_DIRECT"
    open_flags = os.O_DIRECT


class ReadsUncached(Reads):
    """Through the page cache, which keeps nothing."""

    name = "preadv2 8 MiB, RWF_DONTCACHE"
    flags = _RWF_DONTCACHE


class ReadsUncachedUnaligned(ReadsUncached):
    """The same in pieces whose ends cut pages and folios."""

    name = "preadv2 7.7 MB, RWF_DONTCACHE"
    unit = _UNALIGNED


class ReadsAway(Reads):
    """To /dev/null, without a copy; pages are dropped behind it, a folio's first part with its last."""

    name = "sendfile 7.7 MB, dropped"
    unit = _UNALIGNED

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(files)
        self.nowhere = os.open(os.devnull, os.O_WRONLY)

    def read(self, number: int, piece: memoryview) -> None:
        file, begin, end = self.extent(number)
        start, descriptor = begin, self.descriptors[file]
        while start < end:
            start += os.sendfile(self.nowhere, descriptor, start, end - start)
        if begin < end:
            begin = max(0, begin - _FOLIO)
            os.posix_fadvise(descriptor, begin, end - begin, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        os.close(self.nowhere)
        super().close()


class ReadsMapped(Reads):
    """One byte of every page of a mapping is touched; nothing is copied."""

    name = "mmap, SEQUENTIAL"

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__(files)
        # Copy-on-write, because torch wants memory that it could write to.
        self.maps = [mmap.mmap(fd, 0, access=mmap.ACCESS_COPY) for fd in self.descriptors]
        for mapping in self.maps:
            mapping.madvise(mmap.MADV_SEQUENTIAL)

    def read(self, number: int, piece: memoryview) -> None:
        file, start, end = self.extent(number)
        if start < end:
            view = torch.frombuffer(
                self.maps[file], dtype=torch.uint8, count=end - start, offset=start
            )
            view[::_PAGE].sum()  # without Python's lock

    def close(self) -> None:
        for mapping in self.maps:
            mapping.close()
        super().close()


class ReadsMappedAhead(ReadsAhead, ReadsMapped):
    """A mapping whose rounds are asked for as `ReadsAhead` does."""

    name = "mmap, SEQUENTIAL, WILLNEED 64 MiB ahead"

    def tell(self, turn: int) -> None:
        for mapping, size in zip(self.maps, self.sizes, strict=True):
            for start in range(turn * UNIT, min((turn + 1) * UNIT, size), _STEP):
                mapping.madvise(mmap.MADV_WILLNEED, start, min(_STEP, size - start))


class Writes:
    """Writes a file of a known size by pwrite."""

    name: ClassVar[str] = "pwrite 1 MiB, not allocated before"
    flags: ClassVar[int] = 0
    open_flags: ClassVar[int] = 0
    allocates: ClassVar[bool] = False
    piece: ClassVar[int] = 1 << 20
    #: Where the first piece starts.
    shift: ClassVar[int] = 0

    def __init__(self, file: Path, size: int) -> None:
        self.descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | self.open_flags)
        if self.allocates:
            os.posix_fallocate(self.descriptor, 0, size)
        self.units = size // self.piece

    def write(self, number: int, piece: memoryview) -> None:
        """Write unit `number` from `piece`."""
        start, end = (n * self.piece + self.shift for n in (number, number + 1))
        while start < end:
            some = piece[: end - start]
            start += os.pwritev(self.descriptor, [some], start, self.flags)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.descriptor)


class WritesAllocated(Writes):
    """Into a file whose blocks are reserved."""

    name = "pwrite 1 MiB"
    allocates = True


class WritesLarge(WritesAllocated):
    """Calls large enough for the page cache to take pages of 2 MiB."""

    name = "pwrite 8 MiB"
    piece = UNIT


class WritesUncached(WritesAllocated):
    """Through the page cache, which keeps nothing."""

    name = "pwritev2 1 MiB, RWF_DONTCACHE"
    flags = _RWF_DONTCACHE


class WritesUncachedUnaligned(WritesUncached):
    """The same with ends that cut pages: one that has left the cache is read before its other part is written."""

    name = "pwritev2 1 MiB, RWF_DONTCACHE, not aligned"
    shift = 1000


class WritesBehind(WritesUncachedUnaligned):
    """The engine's way: whole pages so, the pages at the ends through the cache."""

    name = "the same, pages at the ends kept in the cache"

    def __init__(self, file: Path, size: int) -> None:
        super().__init__(file, size)
        self.behind = WriteBehind(self.descriptor)

    def write(self, number: int, piece: memoryview) -> None:
        self.behind.write(piece[: self.piece], number * self.piece + self.shift)


class WritesDirect(WritesAllocated):
    """Past the page cache."""

    name = "pwrite 1 MiB, O_DIRECT"
    open_flags = os.O_DIRECT


READS = (
    Reads,
    ReadsAhead,
    ReadsDirect,
    ReadsUncached,
    ReadsUncachedUnaligned,
    ReadsAway,
    ReadsMapped,
    ReadsMappedAhead,
)
WRITES = (
    Writes,
    WritesAllocated,
    WritesLarge,
    WritesUncached,
    WritesUncachedUnaligned,
    WritesBehind,
    WritesDirect,
)
