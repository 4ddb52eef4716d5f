"""Moving file data past the page cache, or into it ahead of use: advice, never needed for correctness.

docs/storage.md has the measurements behind every choice.
"""

from __future__ import annotations

import errno
import os

# The kernel takes one piece of advice for at most its own readahead size, often 512 KiB or less.
_ADVICE = 512 << 10
# Linux 6.14: pages that a read or write brings into the page cache leave it at once. Python has no name for it.
_RWF_DONTCACHE = 0x80
# Where the kernel has no such flag: after how many bytes a file is synced and its pages are dropped.
_SYNC_EVERY = 64 << 20


def past_cache_flag(fd: int) -> int:
    """Return the flag for `os.preadv` that leaves the page cache as it was; 0 where there is none."""
    try:
        os.preadv(fd, [bytearray(1)], 0, _RWF_DONTCACHE)
    except OSError:  # EOPNOTSUPP; whatever else is wrong shows when the file is read
        return 0
    return _RWF_DONTCACHE


def will_need(fd: int, offset: int, nbytes: int) -> None:
    """Have the kernel read [offset, offset + nbytes) in the background, if it is not cached already."""
    if nbytes <= 0 or is_cached(fd, offset + nbytes // 2):
        return
    for start in range(offset, offset + nbytes, _ADVICE):
        length = min(_ADVICE, offset + nbytes - start)
        os.posix_fadvise(fd, start, length, os.POSIX_FADV_WILLNEED)


def drop(fd: int, offset: int, nbytes: int) -> None:
    """Take [offset, offset + nbytes) out of the page cache, as far as it is on the disk."""
    os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_DONTNEED)


def is_cached(fd: int, offset: int) -> bool:
    """Whether the byte at `offset` is in the page cache, as far as the system tells."""
    try:
        return os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:  # not cached, or a file system that cannot say
        return False


class WriteBehind:
    """Writes a file whose pages are not kept: they are on their way to the disk at once.

    So the last sync is short, no read of the same merge waits behind gigabytes of dirty pages, and what
    other programs have cached stays. Any thread may write.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._flags = _RWF_DONTCACHE
        self._unsynced = 0

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of `data` (bytes) at `offset`; raises OSError."""
        done = 0
        # One call moves at most 2,147,479,552 bytes, and may move fewer.
        while done < data.nbytes:
            done += self._write_some(data[done:], offset + done)
        if self._flags:
            return
        # Threads may count past one another: a sync comes a little early or late.
        self._unsynced += data.nbytes
        if self._unsynced >= _SYNC_EVERY:
            self._unsynced = 0
            os.fdatasync(self.fd)
            drop(self.fd, 0, 0)

    def _write_some(self, data: memoryview, offset: int) -> int:
        if self._flags:
            try:
                return os.pwritev(self.fd, [data], offset, self._flags)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                self._flags = 0
        return os.pwrite(self.fd, data, offset)
