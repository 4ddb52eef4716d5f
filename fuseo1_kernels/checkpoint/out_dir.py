"""Checks whether a model may be published at a path."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import OutputError


def check_out_dir(out_dir: Path, *, overwrite: bool, inputs: Sequence[Path]) -> Path:
    """Return the real path of `out_dir`. Raises OutputError unless a model may be published there.

    Nothing is written. `inputs` are the directories of the models that are read.
    """
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
        if out.exists() and not out.is_dir():
            raise OutputError(f"{out_dir}: exists and is not a directory")
        if os.path.ismount(out):
            raise OutputError(
                f"{out_dir}: is a mount point, which cannot be replaced whole;"
                " choose a directory inside it"
            )
        names = os.listdir(out) if out.exists() else []
    except OSError as error:
        raise OutputError(f"{out_dir}: cannot be read ({error.strerror})") from error
    if names and not overwrite:
        raise OutputError(f"{out_dir}: exists and is not empty; choose another OUT or --overwrite")
    # --overwrite deletes the directory: a slip such as OUT=~ must not cost more than a model.
    if names and not any(name == "config.json" or name.endswith(".safetensors") for name in names):
        raise OutputError(
            f"{out_dir}: does not look like a model, so --overwrite will not delete it;"
            " choose another OUT or remove it yourself"
        )
    return out


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
