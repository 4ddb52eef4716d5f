"""Tells whether files, and the merge that reads them, are still those of before."""

from __future__ import annotations

import os
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from ..errors import printable
from .records import Checksum, Count

# Nanoseconds since 1970, or before it.
_Time = Annotated[int, Field(ge=-(2**80), lt=2**80)]


class FileIdentity(NamedTuple):
    """Identifies a file's content without reading it; times in ns, size in bytes.

    A time of modification can be set back, a time of change cannot. But that changes with a file's names, rights and
    owner, too: a file that was touched so may have the same content, or not.
    """

    size: Count
    mtime_ns: _Time
    inode: Count
    ctime_ns: _Time

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """The identity from the result of `os.stat` or `os.fstat`."""
        return cls(
            status.st_size,
            status.st_mtime_ns,
            status.st_ino,
            status.st_ctime_ns,
        )

    def is_touched(self, now: FileIdentity) -> bool:
        """Whether `now` is another by its time of change alone."""
        return self != now and self[:3] == now[:3]


class MergeIdentity(BaseModel):
    """Everything that decides the bytes of the merged tensors.

    `plan` is a checksum of jobs and shards, `files` has the sources by their real paths. Threads, memory and backend
    are not included: they do not change the bytes.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    version: str
    nonfinite: str
    plan: Checksum
    files: dict[str, FileIdentity]

    def difference_to(self, now: MergeIdentity) -> str | None:
        """Describe how the inputs and options of the merge `now` differ from this one's; None if they do not.

        Files that were only touched are no difference: what was read from them has to be read anew (`touched`).
        """
        for file, before in self.files.items():
            if file in now.files and before[:3] != now.files[file][:3]:
                return f"{printable(file)} changed since"
        if self.version != now.version:
            return f"it was begun by fuseo1-kernels {printable(self.version)}"
        if self.nonfinite != now.nonfinite:
            return f"it was begun with --nonfinite {printable(self.nonfinite)}"
        if others := self.files.keys() ^ now.files.keys():
            return f"it was begun with other models: {printable(min(others))}"
        return None if self.plan == now.plan else "of another config or other options"

    def touched(self, now: MergeIdentity) -> set[str]:
        """Return the files that are others in the merge `now` by their times of change alone."""
        both = self.files.keys() & now.files.keys()
        return {file for file in both if self.files[file].is_touched(now.files[file])}
