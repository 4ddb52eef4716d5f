"""Checks that a merge's directories can have their names."""

from __future__ import annotations

import os

from ..errors import OutputError

# Linux's limits in bytes: of a name, and of a path; the files of a model have to fit into it too.
_MOST_OF_A_NAME, _MOST_OF_A_PATH = 255, 4095 - 255


def check_out_name(out_dir: str | os.PathLike[str]) -> None:
    """Raise OutputError if `out_dir`, or OUT.partial beside it, has too long a name for the file system."""
    path = os.path.abspath(out_dir)
    *above, name = path.split(os.sep)
    longest = max(len(os.fsencode(part)) for part in (*above, f"{name}.partial"))
    if longest > _MOST_OF_A_NAME or len(os.fsencode(path)) > _MOST_OF_A_PATH:
        raise OutputError(
            f"{out_dir}: is too long: the merge is made in a directory beside it that is called like it and ends in"
            f" .partial, and a name has at most {_MOST_OF_A_NAME} bytes, a path {_MOST_OF_A_PATH}"
        )
