"""A merge's progress on disk: a journal of lines that survive a kill, with a lock that keeps a second merge out."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import OutputError
from .files import close_quietly
from .records import decode_records, encode_record

_IDENTITY, _TENSORS, _PUBLISHING = "identity", "tensors", "publishing"


class TensorRecord(NamedTuple):
    """A tensor that was merged and written: the checksum of its bytes, and results of its surveys.

    `energy` is by target, in the merge's order, or empty if the method has none; `passes` counts the
    reads of the tensor by the survey that took most (on a GPU, surveys other than SCE's count as one).
    """

    checksum: str
    energy: tuple[float, ...]
    passes: int


class Journal:
    """An open journal, locked until `close`.

    `identity` describes the merge that wrote it (None: nothing usable), `tensors` are those it completed,
    `publishing` is the inode of the directory that it was about to move to OUT. The caller decides
    whether to use them; `restart` clears them. `add` may be called from any thread.
    """

    def __init__(self, file: Path) -> None:
        """Open or create `file`.

        Raises OutputError if another process has it open or it cannot be opened and locked,
        FileNotFoundError if its directory is gone.
        """
        try:
            self._fd = _open_locked(file)
        except BlockingIOError:
            raise OutputError(
                f"{file.parent}: another merge is writing here; wait for it or choose another OUT"
            ) from None
        except FileNotFoundError:
            raise
        except OSError as error:
            raise OutputError(
                f"{file}: cannot be opened and locked ({error.strerror}); choose an OUT elsewhere"
            ) from error
        self.identity: dict[str, Any] | None = None
        self.tensors: dict[str, TensorRecord] = {}
        self.publishing: int | None = None
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def restart(self, identity: Mapping[str, Any]) -> None:
        """Clear the journal, and begin the merge that `identity` describes."""
        os.ftruncate(self._fd, 0)
        self.identity, self.tensors, self.publishing = dict(identity), {}, None
        self._append({_IDENTITY: self.identity})

    def add(self, tensors: Mapping[str, TensorRecord]) -> None:
        """Record tensors whose every byte was written."""
        self._append({_TENSORS: tensors})
        self.tensors.update(tensors)

    def add_publishing(self, inode: int) -> None:
        """Record that the directory of this inode is about to become OUT."""
        self._append({_PUBLISHING: inode})
        os.fsync(self._fd)
        self.publishing = inode

    def close(self) -> None:
        """Release the lock. Idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            close_quietly(fd)  # what the next run needs it checks

    def _append(self, record: dict[str, Any]) -> None:
        line = encode_record(record)
        done = 0
        while done < len(line):  # opened with O_APPEND
            done += os.write(self._fd, line[done:])

    def _load(self) -> None:
        data = bytearray()
        while piece := os.pread(self._fd, 1 << 20, len(data)):
            data += piece
        for record in decode_records(bytes(data)):
            if _IDENTITY in record:
                self.identity = record[_IDENTITY]
            for name, (checksum, energy, passes) in record.get(_TENSORS, {}).items():
                self.tensors[name] = TensorRecord(checksum, tuple(energy), passes)
            self.publishing = record.get(_PUBLISHING, self.publishing)
        if data and not data.endswith(
            b"\n"
        ):  # a line was cut short; end it, so that the next is whole
            os.write(self._fd, b"\n")


def _open_locked(file: Path) -> int:
    while True:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The run that held the lock may have removed the file before it released it.
            if os.fstat(fd).st_nlink > 0:
                return fd
        except BaseException:
            close_quietly(fd)
            raise
        close_quietly(fd)
