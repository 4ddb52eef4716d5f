"""Opens the directories and files that a merge keeps for itself: its user's own, reached by no link.

Names are opened relative to a directory that is open already, so that nobody can put another one in its place. What
somebody else made is refused by name and left as it is.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from ..errors import OutputError
from .files import KINDS, close_quietly
from .folders import raise_it

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_REMEDY = "it is left as it is: move it away or choose another place"


def open_own_directory(path: Path) -> int:
    """Return a handle on the directory `path`.

    Raises OutputError if it is a link or no directory, or if others own it or may write to it, and OSError.
    """
    status = os.stat(path, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        raise _refusal(path, f"is {_kind(status)}, not a directory of this program's own")
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if status.st_uid != os.geteuid() and not _as_made_here(path, status):
            raise _refusal(path, f"belongs to another user (uid {status.st_uid})")
        if status.st_mode & _OTHERS_WRITE and not _as_made_here(path, status):
            raise _refusal(path, "other users can write to it (`chmod go-w` forbids that)")
    except BaseException:
        close_quietly(handle)
        raise
    return handle


def open_own_file(path: Path, flags: int, directory: int, mode: int = 0o600) -> int:
    """Open `path`, by its name in the open `directory`; no link is followed and nobody is waited for.

    Raises OutputError unless it is a regular file of the directory's owner with no other name, and OSError.
    """
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:  # looked at before: to open a device can do something to it
        _check_file(path, os.stat(path.name, dir_fd=directory, follow_symlinks=False), directory)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    fd = os.open(path.name, flags, mode, dir_fd=directory)
    try:
        _check_file(path, os.fstat(fd), directory)
    except BaseException:
        close_quietly(fd)
        raise
    return fd


def check_own_files(path: Path, name: str, directory: int) -> None:
    """Check all that is below the folder `name` of the open `directory` `path`, if it is there.

    Raises OutputError for anything but folders and regular files of the directory's owner, and OSError.
    """
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        raise _refusal(path / name, f"is {_kind(status)}, not a directory")
    for folder, folders, files, fd in os.fwalk(name, dir_fd=directory, onerror=raise_it):
        for entry in (*folders, *files):
            status = os.stat(entry, dir_fd=fd, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                _check_file(path / folder / entry, status, directory)


def _check_file(path: Path, status: os.stat_result, directory: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _refusal(path, f"is {_kind(status)}, not a file of this program's own")
    if status.st_nlink > 1:
        raise _refusal(path, "is a hard link: the file has another name, too")
    if status.st_uid != os.fstat(directory).st_uid:
        raise _refusal(path, f"belongs to another user (uid {status.st_uid})")


def _as_made_here(path: Path, status: os.stat_result) -> bool:
    """Whether a directory made beside `path` gets the same owner and permissions.

    So it is on file systems that have no owners, and on those that give root's files to nobody.
    """
    probe = tempfile.mkdtemp(prefix=f".{path.name}.probe-", dir=path.parent)
    try:
        made = os.stat(probe)
    finally:
        os.rmdir(probe)
    return (made.st_uid, made.st_mode) == (status.st_uid, status.st_mode)


def _kind(status: os.stat_result) -> str:
    return KINDS.get(stat.S_IFMT(status.st_mode), "a file")


def _refusal(path: Path, reason: str) -> OutputError:
    return OutputError(f"{path}: {reason}; {_REMEDY}")
