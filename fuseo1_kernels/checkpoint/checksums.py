"""fuseo1_checksums.json: the checksums of a merged model, beside it.

    {
      "algorithm": "xxh3_128",
      "made_by": "fuseo1-kernels 0.2.0",
      "merge": checksum of everything that the tensors' bytes depend on,
      "options": options that are not in the config,
      "files": {name: {"size": bytes, "checksum": of the whole file}},
      "shards": {name: {"size": bytes, "header": checksum of everything before the tensors}},
      "tensors": {name: {"checksum": of its bytes, "energy": of each target, in the config's order, if any}}
    }

xxh3 finds damage, not forgery. Headers and tensors cover every byte of a shard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from ..errors import CheckpointError
from .journal import TensorRecord
from .json_file import dump_object, read_object
from .shards import Shard

FILE = "fuseo1_checksums.json"
ALGORITHM = "xxh3_128"


def make_checksums(
    *,
    made_by: str,
    merge: str,
    options: Mapping[str, Any],
    files: Mapping[str, bytes],
    shards: Sequence[Shard],
    tensors: Mapping[str, TensorRecord],
) -> bytes:
    """Return the content of the file. The same merge gives the same bytes."""
    return dump_object(
        {
            "algorithm": ALGORITHM,
            "made_by": made_by,
            "merge": merge,
            "options": dict(options),
            "files": {name: describe_file(data) for name, data in sorted(files.items())},
            "shards": {
                shard.file: {
                    "size": shard.size,
                    "header": xxhash.xxh3_128_hexdigest(shard.header),
                }
                for shard in shards
            },
            "tensors": {
                tensor.name: {
                    "checksum": tensors[tensor.name].checksum,
                    "energy": list(tensors[tensor.name].energy),
                }
                for shard in shards
                for tensor in shard.tensors
            },
        }
    )


def describe_file(data: bytes) -> dict[str, Any]:
    """Return the record of a small file: its size in bytes, and its checksum."""
    return {"size": len(data), "checksum": xxhash.xxh3_128_hexdigest(data)}


def read_checksums(directory: Path) -> dict[str, Any]:
    """Return the checked content of the file in `directory`. Raises CheckpointError."""
    file = directory / FILE
    if not file.exists():
        if not directory.exists():
            raise CheckpointError(f"{directory}: no such directory")
        if directory.name.endswith(".partial") and (directory / "journal").exists():
            raise CheckpointError(f"{directory}: an unfinished merge; give the merge command again")
        raise CheckpointError(f"{file}: is missing; only models merged by fuseo1-kernels have it")
    data = read_object(file, unique_keys=True)
    if data.get("algorithm") != ALGORITHM:
        raise CheckpointError(
            f"{file}: its checksums are {data.get('algorithm')!r}, this version knows {ALGORITHM}"
        )
    parts = ("options", "files", "shards", "tensors")
    if not all(_maps_to_objects(data.get(part), part == "options") for part in parts):
        raise CheckpointError(f"{file}: damaged: must hold the objects {', '.join(parts)}")
    return data


def find_model(
    directory: Path, merge: str, files: Mapping[str, bytes], shards: Sequence[Shard]
) -> dict[str, TensorRecord] | None:
    """Return the records of the tensors in `directory` if it holds the model of `merge`, else None.

    Only the checksum file and the files' sizes are read.
    """
    try:
        if not (directory / FILE).exists():
            return None
        data = read_checksums(directory)
        there = {name: describe_file(content) for name, content in files.items()}
        sizes = {
            name: entry["size"]
            for part in ("files", "shards")
            for name, entry in data[part].items()
        }
        if data.get("merge") != merge or data["files"] != there:
            return None
        if sizes.keys() != {*files, *(shard.file for shard in shards)}:
            return None
        if any((directory / name).stat().st_size != size for name, size in sizes.items()):
            return None
        return {
            name: TensorRecord(entry["checksum"], tuple(entry["energy"]), 0)
            for name, entry in data["tensors"].items()
        }
    except (CheckpointError, OSError, KeyError, TypeError):
        return None


def _maps_to_objects(value: Any, any_values: bool) -> bool:
    return isinstance(value, dict) and (
        any_values or all(isinstance(item, dict) for item in value.values())
    )
