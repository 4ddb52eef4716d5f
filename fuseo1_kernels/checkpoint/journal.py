"""A merge's progress on disk: a journal of lines that survive a kill, with a lock that keeps a second merge out."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import OutputError
from .files import close_quietly
from .identity import MergeIdentity
from .owned import open_own_file
from .records import Amount, Checksum, Count, encode_record, explain, intact_lines

# Some 150 bytes a tensor.
_MOST_BYTES = 1 << 30

#: Every journal begins with this line: a file without it is none of ours.
MARK = b"fuseo1-kernels journal\n"


class TensorRecord(NamedTuple):
    """A tensor that was merged and written: the checksum of its bytes, and results of its surveys.

    `energy` is by target, in the merge's order, or empty if the method has none; `passes` counts the
    reads of the tensor by the survey that took most (on a GPU, surveys other than SCE's count as one).
    """

    checksum: Checksum
    energy: tuple[Amount, ...]
    passes: Annotated[int, Field(ge=0, lt=2**31)]


class _Line(BaseModel):
    """The schema of a line of the journal."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    identity: MergeIdentity | None = None
    tensors: dict[str, TensorRecord] = {}
    publishing: Count | None = None


class Journal:
    """An open journal, locked until `close`.

    `identity` describes the merge that wrote it (None: nothing usable), `tensors` are those it completed,
    `publishing` is the inode of the directory that it was about to move to OUT. The caller decides
    whether to use them; `restart` clears them. If an intact line holds what no merge writes, `problem`
    describes it, and there is nothing else. `add` may be called from any thread.
    """

    def __init__(self, file: Path, directory: int) -> None:
        """Open `file`, by its name in the open `directory`; create it if that is empty.

        Raises OutputError if another process has it open, if it cannot be opened and locked or is no
        journal, FileNotFoundError if its directory is gone.
        """
        try:
            self._fd = _open_locked(file, directory)
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
        self.identity: MergeIdentity | None = None
        self.tensors: dict[str, TensorRecord] = {}
        self.publishing: int | None = None
        self.problem: str | None = None
        try:
            found = read_mark(self._fd, file, directory)
            if found != MARK:
                self._write(MARK[len(found) :])
                # After a power cut the mark is there before anything else is.
                os.fsync(self._fd)
                os.fsync(directory)
            self._load(file)
        except BaseException:
            self.close()
            raise

    def restart(self, identity: MergeIdentity) -> None:
        """Clear the journal, and begin the merge that `identity` describes."""
        os.ftruncate(self._fd, len(MARK))
        self._use_nothing()
        self.identity, self.problem = identity, None
        self._append({"identity": identity.model_dump()})

    def go_on(self, identity: MergeIdentity, tensors: Mapping[str, TensorRecord]) -> None:
        """Go on with the merge that `identity` describes, and of what was recorded keep `tensors` alone.

        One line says both: if it is torn, what was recorded before holds, and is looked at again.
        """
        self._append({"identity": identity.model_dump(), "tensors": tensors})
        self.identity, self.tensors = identity, dict(tensors)

    def add(self, tensors: Mapping[str, TensorRecord]) -> None:
        """Record tensors whose every byte was written."""
        self._append({"tensors": tensors})
        self.tensors.update(tensors)

    def add_publishing(self, inode: int) -> None:
        """Record that the directory of this inode is about to become OUT."""
        self._append({"publishing": inode})
        os.fsync(self._fd)
        self.publishing = inode

    def close(self) -> None:
        """Release the lock. Idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            close_quietly(fd)  # what the next run needs it checks

    def _append(self, record: dict[str, Any]) -> None:
        self._write(encode_record(record))

    def _write(self, line: bytes) -> None:
        done = 0
        while done < len(line):  # opened with O_APPEND
            done += os.write(self._fd, line[done:])

    def _load(self, file: Path) -> None:
        data = bytearray()
        size = os.fstat(self._fd).st_size
        while size <= _MOST_BYTES and (piece := os.pread(self._fd, 1 << 20, len(MARK) + len(data))):
            data += piece
        try:
            if size > _MOST_BYTES:
                raise ValueError(f"{file}: has more than {_MOST_BYTES} bytes")
            for number, text in intact_lines(bytes(data)):
                try:
                    self._use(_Line.model_validate_json(text))
                except ValidationError as error:
                    raise ValueError(f"{file}: line {number + 1}: {explain(error)}") from None
        except ValueError as error:
            self._use_nothing()
            self.problem = str(error)
        if data and not data.endswith(b"\n") and not self.problem:
            os.write(self._fd, b"\n")  # a line was cut short; end it, so that the next is whole

    def _use_nothing(self) -> None:
        self.identity, self.tensors, self.publishing = None, {}, None

    def _use(self, line: _Line) -> None:
        if line.identity is not None:
            # Earlier records belong to another version of the models.
            self.identity, self.tensors = line.identity, {}
        self.tensors.update(line.tensors)
        if line.publishing is not None:
            self.publishing = line.publishing


def read_mark(fd: int, file: Path, directory: int) -> bytes:
    """Return what an open journal has of its mark: less than all of it if a run was killed while it made the journal.

    Raises OutputError if it is no journal.
    """
    found = os.pread(fd, len(MARK), 0)
    if found == MARK or (MARK.startswith(found) and os.listdir(directory) == [file.name]):
        return found
    raise OutputError(
        f"{file.parent}: is where the merge would be made, but was not made by a merge;"
        " move it away or choose another OUT"
    )


def _open_locked(file: Path, directory: int) -> int:
    while True:
        flags = os.O_RDWR | os.O_APPEND | (0 if os.listdir(directory) else os.O_CREAT)
        fd = open_own_file(file, flags, directory)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The run that held the lock may have removed the file before it released it.
            if os.fstat(fd).st_nlink > 0:
                return fd
        except BaseException:
            close_quietly(fd)
            raise
        close_quietly(fd)
