"""fuseo1_checksums.json: the checksums of a merged model, beside it.

    {
      "checksum": of this file, with zeros in this place,
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

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import xxhash
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..errors import CheckpointError
from .files import is_inner_name, read_bytes
from .journal import TensorRecord
from .json_file import dump_object, parse_object
from .records import Amount, Checksum, Count, explain
from .shards import OutputTensor, Shard

FILE = "fuseo1_checksums.json"
ALGORITHM = "xxh3_128"

_UNSEALED = "0" * 32


def _inside(name: str) -> str:
    """Return the path of a file in the model's directory. Raises ValueError for one that leads elsewhere."""
    if not is_inner_name(name):
        raise ValueError(f"{name!r} is no file of the model")
    return name


_Name = Annotated[str, AfterValidator(_inside)]


class Options(BaseModel):
    """The options that a merged model's bytes depend on, besides its config."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    crop_embeddings: bool
    nonfinite: Annotated[str, Field(pattern=r"\A(error|propagate)\z")]
    random_seed: int


@dataclass(frozen=True)
class FileRecord:
    """A small file: its size in bytes, and its checksum."""

    size: Count
    checksum: Checksum

    @classmethod
    def of(cls, data: bytes) -> FileRecord:
        return cls(len(data), xxhash.xxh3_128_hexdigest(data))


@dataclass(frozen=True)
class ShardRecord:
    """A shard: its size in bytes, and the checksum of everything before its tensors."""

    size: Count
    header: Checksum


@dataclass(frozen=True)
class MergedRecord:
    """A tensor: the checksum of its bytes, and the energy of each target, if any."""

    checksum: Checksum
    energy: tuple[Amount, ...]


class Checksums(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    checksum: Checksum
    algorithm: Literal["xxh3_128"]
    made_by: str
    merge: Checksum
    options: Options
    files: dict[_Name, FileRecord]
    shards: dict[_Name, ShardRecord]
    tensors: dict[str, MergedRecord]


def make_checksums(
    *,
    made_by: str,
    merge: str,
    options: Options,
    files: Mapping[str, bytes],
    shards: Sequence[Shard],
    tensors: Mapping[str, TensorRecord],
) -> bytes:
    """Return the content of the file. The same merge gives the same bytes."""

    def entry(tensor: OutputTensor) -> dict[str, Any]:
        record = tensors[tensor.name]
        return {"checksum": record.checksum, "energy": record.energy}

    return seal(
        {
            "algorithm": ALGORITHM,
            "made_by": made_by,
            "merge": merge,
            "options": options.model_dump(),
            "files": {name: vars(FileRecord.of(data)) for name, data in sorted(files.items())},
            "shards": {
                shard.file: {
                    "size": shard.size,
                    "header": xxhash.xxh3_128_hexdigest(shard.header),
                }
                for shard in shards
            },
            # Their entries are made one by one: there may be many thousands.
            "tensors": {tensor.name: tensor for shard in shards for tensor in shard.tensors},
        },
        entry,
    )


def seal(content: Mapping[str, Any], entry: Callable[[Any], Any] | None = None) -> bytes:
    """Return the file of `content`, with its own checksum first; `entry` as `default` of dump_object."""
    data = dump_object({"checksum": _UNSEALED, **content}, entry)
    checksum = xxhash.xxh3_128_hexdigest(data)
    return data.replace(_UNSEALED.encode(), checksum.encode(), 1)


def read_checksums(directory: Path) -> Checksums:
    """Return the checked content of the file in `directory`. Raises CheckpointError."""
    file = directory / FILE
    if not os.path.exists(file):
        if not os.path.exists(directory):
            raise CheckpointError(f"{directory}: no such directory")
        if directory.name.endswith(".partial") and (directory / "journal").exists():
            raise CheckpointError(f"{directory}: an unfinished merge; give the merge command again")
        raise CheckpointError(f"{file}: is missing; only models merged by fuseo1-kernels have it")
    data = read_bytes(file)
    try:
        # Keys that stand twice and the like are refused here, wrong types there.
        parse_object(data, str(file), unique_keys=True, strict=True)
        found = Checksums.model_validate_json(data)
        unsealed = data.replace(found.checksum.encode(), _UNSEALED.encode(), 1)
        if xxhash.xxh3_128_hexdigest(unsealed) != found.checksum:
            raise CheckpointError(f"{file}: differs from what was written")
    except ValidationError as error:
        raise CheckpointError(f"{file}: damaged: {explain(error)}; {_REMEDY}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_REMEDY}") from None
    return found


_REMEDY = "copy the model again from where it is whole, or merge again"


def find_model(
    directory: Path, merge: str, files: Mapping[str, bytes], shards: Sequence[Shard]
) -> dict[str, TensorRecord] | None:
    """Return the records of the tensors in `directory` if it holds the model of `merge`, else None.

    Only the checksum file and the files' sizes are read.
    """
    try:
        found = read_checksums(directory)
        sizes = {name: entry.size for name, entry in found.files.items()}
        sizes |= {name: entry.size for name, entry in found.shards.items()}
        if found.merge != merge or found.files != {n: FileRecord.of(d) for n, d in files.items()}:
            return None
        if found.shards.keys() != {shard.file for shard in shards}:
            return None
        if found.tensors.keys() != {tensor.name for shard in shards for tensor in shard.tensors}:
            return None
        if any((directory / name).stat().st_size != size for name, size in sizes.items()):
            return None
    except (CheckpointError, OSError):
        return None
    return {name: TensorRecord(r.checksum, r.energy, 0) for name, r in found.tensors.items()}
