"""Files put into the page cache, and dropped from it."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence
from pathlib import Path

_CACHESTAT = 451  # the system call's number, the same on every architecture; Linux 6.5 and later
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PIECE = 8 << 20


def warm(files: Sequence[Path]) -> None:
    """Read all of `files`, so that the page cache holds them."""
    piece = bytearray(_PIECE)
    for file in files:
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(piece):
                pass


def make_cold(files: Sequence[Path], idle: float = 0.0) -> None:
    """Drop `files`, leaving the free memory in the same state whatever has run before.

    A virtual machine may report memory that has been free for seconds to its host, in blocks of 2 MiB,
    and must ask for it back, at several times the cost of reading as much: what reads after a pause is
    slow. So the files are read and dropped once more, and whoever comes at once finds memory that
    was in use a moment ago, `idle` seconds later memory that has been given away.
    """
    drop(files)
    warm(files)
    drop(files)
    time.sleep(idle)


def drop(files: Sequence[Path]) -> None:
    """Drop `files` from the page cache; stop the benchmark if the kernel keeps some of them."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # a dirty page would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    size = sum(file.stat().st_size for file in files)
    if (cached_bytes(files) or 0) > size // 50:
        raise SystemExit(f"{files[0]} and the like stay in the page cache: who else has them open?")


def cached_bytes(files: Sequence[Path]) -> int | None:
    """Return how much of `files` the page cache holds; None where the kernel does not say."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    everything = (ctypes.c_uint64 * 2)(0, 0)  # offset, length: 0 is up to the end
    pages = 0
    for file in files:
        counts = (ctypes.c_uint64 * 5)()  # the first: pages in the cache
        descriptor = os.open(file, os.O_RDONLY)
        try:
            if syscall(_CACHESTAT, descriptor, everything, counts, 0) != 0:
                return None
        finally:
            os.close(descriptor)
        pages += counts[0]
    return pages * _PAGE
