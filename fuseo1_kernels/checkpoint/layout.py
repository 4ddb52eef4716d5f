"""Finds the weight files in a model's directory, as the Hugging Face hub lays them out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError
from .json_file import read_object

CONFIG = "config.json"

#: Names of weight files, best first: (a single file, the index of several).
FORMATS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


class Weights(NamedTuple):
    """The names of a model's weight files and, if there is an index, its map from tensors to them."""

    files: list[str]
    weight_map: dict[str, str] | None
    torch_bin: bool


def find_weights(path: Path, formats: Sequence[tuple[str, str]] = FORMATS) -> Weights | None:
    """Return the weights that `path` has, or that its index names, in the first of `formats`; else None."""
    for single, index in formats:
        if (path / single).exists():
            return Weights([single], None, single.endswith(".bin"))
        if (path / index).exists():
            weight_map = read_weight_map(path / index)
            files = sorted(set(weight_map.values()))
            return Weights(files, weight_map, single.endswith(".bin"))
    return None


def read_weight_map(index: Path) -> dict[str, str]:
    """Return the index's map from tensor to shard. Raises CheckpointError if a name leads out of the directory."""
    weight_map = read_object(index, unique_keys=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no 'weight_map' from tensor names to shard files")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(
                f"{index}: weight_map gives tensor {tensor!r} no file name but {shard!r}"
            )
        if not shard or os.path.isabs(shard) or ".." in Path(shard).parts:
            raise CheckpointError(
                f"{index}: weight_map sends tensor {tensor!r} to {shard!r}:"
                " a shard must be a file inside the model's directory"
            )
    return weight_map


def check_shard(path: Path, shard: str) -> Path:
    """Return the path of a shard of the index. Raises CheckpointError if it is missing or a link out of the model."""
    try:
        target = Path(os.path.realpath(path / shard, strict=True))
    except (OSError, ValueError):  # ValueError: a name that no file can have
        raise CheckpointError(
            f"{path}: the index names the shard {shard!r}, which is missing"
        ) from None
    if not any(target.is_relative_to(home) for home in _homes(path)):
        raise CheckpointError(
            f"{path}: the shard {shard!r} is a link to {target}, outside of the model's directory"
        )
    return path / shard


def _homes(path: Path) -> list[Path]:
    """Return the real directories that may hold the shards of the model at `path`.

    A snapshot in the hub's cache, CACHE/models--org--name/snapshots/REVISION, links to
    models--org--name/blobs; since huggingface_hub 2 those may link on to CACHE/blobs, shared by all
    models.
    """
    path = Path(os.path.realpath(path))
    snapshots, repo = path.parent, path.parent.parent
    if snapshots.name == "snapshots" and repo.name.startswith("models--"):
        return [path, repo / "blobs", repo.parent / "blobs"]
    return [path]
