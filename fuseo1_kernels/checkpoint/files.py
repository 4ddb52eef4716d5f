"""Opens the files of a model: regular files alone, without waiting for anybody."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import CheckpointError

#: The most that a file beside the weights may have: the largest tokenizers have 35 MB.
MAX_SMALL_FILE = 256 << 20

#: What may stand where a file is expected.
KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a symbolic link",
}


def open_regular(file: Path, *, dir_fd: int | None = None, follow: bool = True) -> int:
    """Return a descriptor to read the regular file `file`, relative to `dir_fd` if given.

    Whatever else stands there is refused: opening a named pipe would wait for its writer, and a device has no end.
    Without `follow`, so is a symbolic link. The caller closes the descriptor. Raises CheckpointError.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        # Looked at before: to open a device can do something to it. Looked at again, as it may be another by then.
        _check(file, os.stat(file, dir_fd=dir_fd, follow_symlinks=follow))
        fd = os.open(file, flags | (0 if follow else os.O_NOFOLLOW), dir_fd=dir_fd)
        try:
            _check(file, os.fstat(fd))
        except BaseException:
            close_quietly(fd)
            raise
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be opened ({error.strerror})") from error
    except ValueError as error:  # a name that no file can have
        raise CheckpointError(f"{str(file)!r}: cannot be opened ({error})") from error
    return fd


@contextmanager
def reading(file: Path) -> Iterator[BinaryIO]:
    """Opens the regular file `file` as a stream of bytes. Raises CheckpointError, for reads that fail too."""
    fd = open_regular(file)
    try:
        with open(fd, "rb") as stream:
            yield stream
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error


def close_quietly(fd: int) -> None:
    """Close a file that was only read, or whose end is known already: an error would say nothing new."""
    with suppress(OSError):
        os.close(fd)


def read_bytes(file: Path, limit: int = MAX_SMALL_FILE) -> bytes:
    """Return the content of a small file, which has at most `limit` bytes. Raises CheckpointError."""
    with reading(file) as stream:
        # Not read, to find that out, if the system says how much there is.
        size = os.fstat(stream.fileno()).st_size
        large = size > limit
        # Not `limit` bytes: the buffer would be that large.
        data = b"" if large else stream.read(size + 1)
        if len(data) > size:  # it grew, or is a file of /proc
            data += stream.read(limit + 1 - len(data))
    if large or len(data) > limit:
        raise CheckpointError(
            f"{file}: has more than {limit} bytes, too many for a file beside the weights"
        )
    return data


def is_inner_name(name: str) -> bool:
    """Whether `name` can be that of a file inside a folder: relative, and no part of it leads elsewhere."""
    return "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))


def _check(file: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "none")
        raise CheckpointError(f"{file}: is {kind}, not a file; remove it or choose another model")
