"""Moving file data past the page cache, or into it ahead of use: advice, never needed for correctness.

docs/storage.md has the measurements behind every choice.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
from contextlib import suppress
from functools import cache

# The kernel heeds one call's advice for at most its own readahead size, often 512 KiB or less.
_ADVICE = 512 << 10
# RWF_DONTCACHE, which Python does not name: pages that a write brings into the page cache leave it at once. Linux has
# it since 6.14; until "gate dropbehind invalidate on folio !dirty" it could drop pages that another write had made
# dirty again.
_RWF_DONTCACHE = 0x80
_DONTCACHE_SINCE = (6, 16)
_RWF_NOWAIT = 0x8
# The number of cachestat on all architectures; since Linux 6.5, for files that the process owns or may write.
_CACHESTAT = 451
# Without cachestat, one page in so many bytes is asked for.
_PROBE = 1 << 20
# Without RWF_DONTCACHE, a file is synced and its pages are dropped after so many bytes.
_SYNC_EVERY = 64 << 20


def is_cached(fd: int, offset: int, nbytes: int) -> bool | None:
    """Whether all of [offset, offset + nbytes) is in the page cache; None: the system does not tell."""
    pages = _round_up(offset + nbytes, mmap.PAGESIZE) // mmap.PAGESIZE - offset // mmap.PAGESIZE
    asked, found = (ctypes.c_uint64 * 2)(offset, nbytes), (ctypes.c_uint64 * 5)()
    # Unlike a non-blocking read, this starts no reads, whose pages would break up the large folios.
    if nbytes and _libc().syscall(_CACHESTAT, fd, asked, found, 0) == 0:
        return found[0] >= pages
    for at in range(offset, offset + nbytes, _PROBE):
        cached = _is_page_cached(fd, at)
        if not cached:
            return cached
    return True


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _is_page_cached(fd: int, offset: int) -> bool | None:
    try:
        return os.preadv(fd, [bytearray(1)], offset, _RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    # A file system that cannot say, or a Python built for a C library before preadv2 (glibc 2.26).
    except (OSError, NotImplementedError):
        return None


def advise(fd: int, offset: int, nbytes: int, advice: int) -> None:
    """Advise the kernel on the use of [offset, offset + nbytes) (0 bytes: to the end). Ignores errors."""
    with suppress(OSError):  # a kernel or a sandbox without it
        os.posix_fadvise(fd, offset, nbytes, advice)


def will_need(fd: int, offset: int, nbytes: int) -> None:
    """Have the kernel read [offset, offset + nbytes) in the background."""
    for start in range(offset, offset + nbytes, _ADVICE):
        length = min(_ADVICE, offset + nbytes - start)
        advise(fd, start, length, os.POSIX_FADV_WILLNEED)


def read_ahead(fd: int, offset: int, nbytes: int) -> None:
    """Read [offset, offset + nbytes) into the page cache, and wait for it. Raises OSError.

    The bytes are sent to /dev/null. Unlike a read this copies nothing, and unlike advice it uses the large
    folios of sequential reads.
    """
    with open(os.devnull, "wb", buffering=0) as nowhere:
        while nbytes > 0 and (sent := os.sendfile(nowhere.fileno(), fd, offset, nbytes)):
            offset, nbytes = offset + sent, nbytes - sent


def drop(fd: int, offset: int, nbytes: int) -> None:
    """Drop [offset, offset + nbytes) from the page cache, as far as it is on the disk.

    A folio that is only partly in the range stays until its other part is dropped too.
    """
    advise(fd, offset, nbytes, os.POSIX_FADV_DONTNEED)


class WriteBehind:
    """Writes a file without keeping its pages in the page cache: they are sent to the disk at once.

    So the last sync is short, no read of the same merge waits behind gigabytes of dirty pages, and the
    cached pages of other programs stay. Any thread may write.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._flags = _RWF_DONTCACHE if _kernel() >= _DONTCACHE_SINCE else 0
        self._unsynced = 0

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of `data` (bytes) at `offset`. Raises OSError."""
        end = offset + data.nbytes
        # Writing part of a page that has left the cache would read the page first. So pages that this write may
        # share with another one stay in the cache until `sync`.
        first = min(_round_up(offset, mmap.PAGESIZE), end)
        last = max(first, end // mmap.PAGESIZE * mmap.PAGESIZE)
        self._write_all(data[: first - offset], offset, past_cache=False)
        self._write_all(data[first - offset : last - offset], first, past_cache=True)
        self._write_all(data[last - offset :], last, past_cache=False)
        if self._flags:
            return
        # Not locked: threads may miscount, and a sync then comes a little early or late.
        self._unsynced += data.nbytes
        if self._unsynced >= _SYNC_EVERY:
            self._unsynced = 0
            os.fdatasync(self.fd)
            drop(self.fd, 0, 0)

    def sync(self) -> None:
        """Flush everything to the disk, and drop it from the page cache. Raises OSError."""
        os.fsync(self.fd)
        drop(self.fd, 0, 0)

    def close(self) -> None:
        """Close the file; what was not synced may never reach the disk. Raises OSError."""
        os.close(self.fd)

    def _write_all(self, data: memoryview, offset: int, past_cache: bool) -> None:
        # One call moves at most 2,147,479,552 bytes, and may move fewer.
        while data.nbytes > 0:
            done = self._write_some(data, offset, past_cache)
            data, offset = data[done:], offset + done

    def _write_some(self, data: memoryview, offset: int, past_cache: bool) -> int:
        if past_cache and self._flags:
            try:
                return os.pwritev(self.fd, [data], offset, self._flags)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
            except NotImplementedError:
                pass  # a Python built for a C library before pwritev2 (glibc 2.26)
            self._flags = 0
        return os.pwrite(self.fd, data, offset)


@cache
def _kernel() -> tuple[int, ...]:
    """The kernel's version: (6, 18)."""
    return tuple(int(n) for n in re.findall(r"\d+", os.uname().release)[:2])


def _round_up(offset: int, step: int) -> int:
    return -(-offset // step) * step
