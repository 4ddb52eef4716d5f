"""Tells whether a file is still the one that was read before."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple


class FileIdentity(NamedTuple):
    """Identifies a file's content without reading it: size in bytes, time of modification in ns, inode."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """The identity from the result of `os.stat` or `os.fstat`."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


def describe_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Describe how the inputs and options of a merge differ from those before; None if they do not.

    Both are results of `fingerprint`: {"files": {path: FileIdentity}, ...}, in JSON's types.
    """
    files, current = before.get("files", {}), now["files"]
    changed = [f for f in current if f in files and list(files[f]) != list(current[f])]
    if changed:
        return f"{changed[0]} changed since"
    if before.get("version") != now["version"]:
        return f"it was begun by fuseo1-kernels {before.get('version')}"
    if before.get("nonfinite") != now.get("nonfinite"):
        return f"it was begun with --nonfinite {before.get('nonfinite')}"
    if files.keys() != current.keys():
        return f"it was begun with other models: {min(files.keys() ^ current.keys())}"
    return None if before == now else "of another config or other options"
