"""Finds the weight files in a model's directory, as the Hugging Face hub lays them out, and where links may lead."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError, printable
from .json_file import read_object

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
ADDED_TOKENS, MODEL_CARD = "added_tokens.json", "README.md"
#: The file that holds a merged model's config. Tools on the hub look for it under mergekit's name.
MERGE_CONFIG = "mergekit_config.yml"
#: With it transformers loads an adapter on top of the model.
ADAPTER = "adapter_config.json"

#: Names of weight files, best first: (a single file, the index of several).
FORMATS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
#: The same of an adapter's, which PEFT does not shard.
ADAPTER_FORMATS = tuple(
    (name, f"{name}.index.json") for name in ("adapter_model.safetensors", "adapter_model.bin")
)
#: Small files that are read, but do not go along as they are.
ALWAYS_READ = (CONFIG, MODEL_CARD, *(index for _, index in FORMATS))


class Weights(NamedTuple):
    """The names of a model's weight files and, if there is an index, its map from tensors to them."""

    files: list[str]
    weight_map: dict[str, str] | None
    torch_bin: bool


def find_weights(
    path: Path,
    formats: Sequence[tuple[str, str]] = FORMATS,
    homes: Sequence[Path] | None = None,
) -> Weights | None:
    """Return the weights that `path` has, or that its index names, in the first of `formats`; else None.

    Raises CheckpointError for a damaged index and, with `homes`, for one that is a link out of them.
    """
    for single, index in formats:
        if (path / single).exists():
            return Weights([single], None, single.endswith(".bin"))
        if (path / index).exists():
            if homes is not None:
                check_links(path, [index], homes)
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


def check_links(path: Path, names: Iterable[str], homes: Sequence[Path]) -> None:
    """Raise CheckpointError for one of the files `names` of the model at `path` that a link has out of `homes`.

    A file that is not there is left to whoever opens it.
    """
    for name in names:
        try:
            target = Path(os.path.realpath(path / name, strict=True))
        except (OSError, ValueError):  # ValueError: a name that no file can have
            continue
        if not any(target.is_relative_to(home) for home in homes):
            raise CheckpointError(
                f"{path}: {name!r} is a link to {printable(str(target))}, outside of the model's"
                f" directory; if the file belongs to the model, give --allow-links"
                f" {printable(str(target.parent))} (in Python allow_links)"
            )


def homes_of(path: Path, allow_links: Iterable[str | os.PathLike[str]] = ()) -> list[Path]:
    """Return the real directories that may hold the files of the model at `path`: its own, and `allow_links`.

    A snapshot in the hub's cache, CACHE/models--org--name/snapshots/REVISION, links to
    models--org--name/blobs; since huggingface_hub 2 those may link on to CACHE/blobs, shared by all
    models.
    """
    path = Path(os.path.realpath(path))
    homes = [path, *map(Path, allow_links)]
    snapshots, repo = path.parent, path.parent.parent
    if snapshots.name == "snapshots" and repo.name.startswith("models--"):
        homes += [repo / "blobs", repo.parent / "blobs"]
    return [Path(os.path.realpath(home)) for home in homes]
