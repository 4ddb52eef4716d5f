"""Looks at, syncs and deletes what is in a directory that is open, by names relative to it; no link is followed."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from typing import NoReturn


def remove_tree(name: str, directory: int, only: Collection[str] | None = None) -> None:
    """Delete the folder `name` of the open `directory`; of its files those alone whose paths in it are in `only`.

    Links are deleted, not followed. Raises OSError; ENOTEMPTY if files remain.
    """
    if not exists(name, directory):
        return
    for folder, folders, files, fd in os.fwalk(
        name, topdown=False, dir_fd=directory, onerror=raise_it
    ):
        for entry in files:
            if only is None or os.path.relpath(f"{folder}/{entry}", name) in only:
                os.unlink(entry, dir_fd=fd)
        for entry in folders:
            try:
                os.rmdir(entry, dir_fd=fd)
            except NotADirectoryError:  # a link to one
                if only is None or os.path.relpath(f"{folder}/{entry}", name) in only:
                    os.unlink(entry, dir_fd=fd)
            except OSError as error:
                if only is None or error.errno != errno.ENOTEMPTY:
                    raise
    os.rmdir(name, dir_fd=directory)


def sync_folders(name: str, directory: int) -> None:
    """Flush the names in the folder `name` of the open `directory` to the disk, and those in its folders."""
    for _, _, _, fd in os.fwalk(name, dir_fd=directory, onerror=raise_it):
        os.fsync(fd)


def exists(name: str, directory: int) -> bool:
    """Whether the open `directory` has the entry `name`, if only a link. Raises OSError."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def raise_it(error: OSError) -> NoReturn:
    """Raise the error of a walk, which would leave it out."""
    raise error
