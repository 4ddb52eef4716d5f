"""The yardstick of whole merges: read every input byte and write every output byte, and nothing else.

One thread, large `pread`s and `pwrite`s, an fsync. Which pieces are fastest depends on the machine, so a
few are tried first, and the copy that a merge is held against is the best of them. A small piece stays in
the processor's cache, a large one costs fewer calls; and where a virtual machine reports its free memory
to the host in blocks of 2 MiB, writes of 2 MiB and more fill the page cache with just such blocks, which
the host must give back first: ten times slower than writes of 1 MiB.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import page_cache
from report import median, table

_PIECES = (256 << 10, 1 << 20, 8 << 20, 16 << 20)
_TRIES = 3
_COLD_TRIES = 2  # the slow ones


@dataclass(frozen=True)
class Copy:
    """Seconds to read every input byte, to write every output byte, and then to sync the output."""

    read: float
    write: float
    sync: float

    @property
    def seconds(self) -> float:
        return self.read + self.write + self.sync


@dataclass(frozen=True)
class Pieces:
    """Bytes of one call, and the median seconds of a whole copy's part with every size tried."""

    read: int
    read_cold: int
    write: int
    tried: dict[str, dict[int, float]]

    def table(self) -> str:
        """Return a Markdown table: seconds by size of the pieces, the chosen ones in bold."""
        rows = []
        chosen = {"read": self.read, "read, cold": self.read_cold, "write and fsync": self.write}
        for what, seconds in self.tried.items():
            cells = [f"{seconds[size]:.2f}" for size in _PIECES]
            cells[_PIECES.index(chosen[what])] = f"**{cells[_PIECES.index(chosen[what])]}**"
            rows.append([what, *cells])
        header = [
            f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB" for size in _PIECES
        ]
        return table(["seconds of the plain copy, by piece", *header], rows)


def try_pieces(inputs: Sequence[Path], output_bytes: int, out: Path) -> Pieces:
    """Find the best pieces: sizes take turns, and the least median wins."""
    read: dict[int, list[float]] = {}
    cold: dict[int, list[float]] = {}
    write: dict[int, list[float]] = {}
    for turn in range(_TRIES):
        for size in _PIECES:
            page_cache.warm(inputs)
            read.setdefault(size, []).append(_read(inputs, size))
            write.setdefault(size, []).append(sum(_write(output_bytes, size, out)))
            if turn < _COLD_TRIES:
                page_cache.make_cold(inputs)
                cold.setdefault(size, []).append(_read(inputs, size))
    page_cache.warm(inputs)
    tried = {
        what: {size: median(seconds) for size, seconds in taken.items()}
        for what, taken in (("read", read), ("read, cold", cold), ("write and fsync", write))
    }
    read_by, cold_by, write_by = (
        min(seconds, key=lambda size: seconds[size]) for seconds in tried.values()
    )
    return Pieces(read_by, cold_by, write_by, tried)


def plain_copy(
    inputs: Sequence[Path], output_bytes: int, out: Path, pieces: Pieces, *, cold: bool
) -> Copy:
    """Read the inputs front to back and write `output_bytes` bytes to `out`, which is then deleted."""
    read = _read(inputs, pieces.read_cold if cold else pieces.read)
    return Copy(read, *_write(output_bytes, pieces.write, out))


def copies_table(
    copies: dict[str, Sequence[Copy]], inputs: Sequence[Path], output_bytes: int
) -> str:
    """Return a Markdown table of the medians of `copies`, which are named by the cache's state."""
    read_bytes = sum(file.stat().st_size for file in inputs)
    rows = [
        [
            cache,
            str(len(made)),
            f"{median(c.read for c in made):.2f}",
            f"{median(c.write for c in made):.2f}",
            f"{median(c.sync for c in made):.2f}",
            f"{median(c.seconds for c in made):.2f}",
            f"{min(c.seconds for c in made):.2f}",
        ]
        for cache, made in copies.items()
    ]
    moved = [f"read {read_bytes / 1e9:.2f} GB", f"write {output_bytes / 1e9:.2f} GB", "fsync"]
    return table(["plain copy, page cache", "copies", *moved, "in all", "min"], rows)


def buffer(size: int) -> mmap.mmap:
    """Return page-aligned memory, in huge pages where there are any, that holds random bytes."""
    made = mmap.mmap(-1, size)
    with contextlib.suppress(OSError):  # a kernel without them
        made.madvise(mmap.MADV_HUGEPAGE)
    made[:] = (os.urandom(min(size, 1 << 20)) * (1 + (size >> 20)))[:size]
    return made


def _read(inputs: Sequence[Path], piece: int) -> float:
    target = buffer(piece)
    start = time.perf_counter()
    for file in inputs:
        descriptor, at = os.open(file, os.O_RDONLY), 0
        while count := os.preadv(descriptor, [target], at):
            at += count
        os.close(descriptor)
    return time.perf_counter() - start


def _write(size: int, piece: int, out: Path) -> tuple[float, float]:
    view = memoryview(buffer(piece))
    os.sync()  # so that nothing else is being written
    start = time.perf_counter()
    descriptor, at = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 0
    while at < size:
        at += os.pwrite(descriptor, view[: size - at], at)
    written = time.perf_counter()
    os.fsync(descriptor)
    synced = time.perf_counter()
    os.close(descriptor)
    out.unlink()
    return written - start, synced - written
