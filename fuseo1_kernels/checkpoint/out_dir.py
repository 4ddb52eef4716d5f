"""Checks whether a model may be published at a path, and says what would be deleted there."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import OutputError, first_names
from .contents import contents_of

_MOUNTS = Path("/proc/self/mountinfo")
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


def check_place(out_dir: str | os.PathLike[str]) -> Path:
    """Return `out_dir` as a path. Raises OutputError for places that are no model's, whatever they hold.

    These are the empty text (an unset variable in a script), the current directory, the user's home, a mount point,
    and the directories above them.
    """
    if not os.fspath(out_dir):
        raise OutputError("OUT is empty (an unset variable?); name the directory of the new model")
    out = Path(os.path.realpath(out_dir))
    for place, what in _places(out):
        if out == place:
            raise OutputError(f"{out_dir}: is {what}; choose another OUT")
        if place.is_relative_to(out):
            raise OutputError(f"{out_dir}: contains {place}, {what}; choose another OUT")
    return Path(out_dir)


def check_out_dir(
    out_dir: str | os.PathLike[str], *, overwrite: bool, inputs: Sequence[Path]
) -> list[str]:
    """Return the paths in `out_dir` that a merge would replace. Raises OutputError unless a model may come there.

    Nothing is written. `inputs` are the directories and files of the models that are read.
    """
    check_place(out_dir)
    out = Path(os.path.realpath(out_dir))
    for source in inputs:
        real = Path(os.path.realpath(source))
        if out == real or out.is_relative_to(real):
            raise OutputError(
                f"{out_dir}: lies inside the input model {source}; choose another OUT"
            )
        if real.is_relative_to(out):
            raise OutputError(f"{out_dir}: contains the input model {source}; choose another OUT")
    try:
        if not out.exists():
            return []
        if not out.is_dir():
            raise OutputError(f"{out_dir}: exists and is not a directory")
        if not os.listdir(out):
            return []
        if not overwrite:
            raise OutputError(
                f"{out_dir}: exists and is not empty; choose another OUT or --overwrite"
            )
        own, foreign, weights = contents_of(out)
    except OSError as error:
        raise OutputError(f"{out_dir}: cannot be read ({error.strerror})") from error
    if not weights:
        raise OutputError(
            f"{out_dir}: does not look like a model, so --overwrite will not delete it;"
            " choose another OUT or remove it yourself"
        )
    if foreign:
        raise OutputError(
            f"{out_dir}: --overwrite replaces the files of a model alone, and will not delete"
            f" {first_names(foreign)}; move that away or choose another OUT"
        )
    return own


def find_obstacles(out_dir: Path, nbytes: int) -> str | None:
    """The reason why a model of `nbytes` bytes cannot be written beside `out_dir`, found by trying; None if it can."""
    out = Path(os.path.realpath(out_dir))
    parent = next(p for p in out.parents if p.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".{out.name}.probe-", dir=parent))
        free = shutil.disk_usage(parent).free
    except OSError as error:
        return f"{out_dir}: cannot be created ({error.strerror})"
    if nbytes > free:
        return f"{out_dir}: no space left: the merged model needs {nbytes} bytes, {free} are free"
    return None


def _places(out: Path) -> Iterator[tuple[Path, str]]:
    """Yield real directories that `out` may not be or contain, with what they are."""
    with suppress(OSError):  # it may be deleted
        yield Path(os.getcwd()), "the current directory"
    homes = {os.path.expanduser("~")}
    with suppress(KeyError):  # a user without an account, in containers
        homes.add(pwd.getpwuid(os.getuid()).pw_dir)
    for home in homes:
        yield Path(os.path.realpath(home)), "the home directory"
    if os.path.ismount(out):
        yield out, "a mount point"
    with suppress(OSError):  # these have what one file system mounts within itself, too
        for line in _MOUNTS.read_bytes().splitlines():
            point = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), line.split(b" ")[4])
            yield Path(os.fsdecode(point)), "a mount point"
