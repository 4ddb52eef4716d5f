"""Plans the weight files of the merged model from names, dtypes and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import OutputError
from .header import DTYPE_BYTES, write_header
from .json_file import dump_object


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor to be written; `dtype` is safetensors' name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The number of its bytes."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the output, known to the byte before any merging; `offsets` are absolute."""

    file: str
    header: bytes
    tensors: tuple[OutputTensor, ...]
    offsets: Mapping[str, int]
    size: int


def plan_shards(tensors: Sequence[OutputTensor], shard_size: int) -> tuple[Shard, ...]:
    """Distribute `tensors`, in their order, over shards of at most `shard_size` bytes of data each.

    A larger tensor has its own shard. A single shard is called model.safetensors, several
    model-00001-of-0000N.safetensors. Raises OutputError.
    """
    if shard_size < 1:
        raise OutputError(f"the shard size must be at least one byte, not {shard_size}")
    groups: list[list[OutputTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ValueError("a tensor's name stands twice in the output")
    if len(groups) == 1:
        return (_plan_shard("model.safetensors", groups[0]),)
    return tuple(
        _plan_shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors", group)
        for i, group in enumerate(groups, start=1)
    )


def _plan_shard(file: str, tensors: Sequence[OutputTensor]) -> Shard:
    # transformers refuses a file that does not say which framework's layout it has.
    header = write_header([(t.name, t.dtype, t.shape) for t in tensors], {"format": "pt"})
    offsets = {}
    end = len(header)
    for tensor in tensors:
        offsets[tensor.name] = end
        end += tensor.nbytes
    return Shard(file, header, tuple(tensors), offsets, end)


def index_json(shards: Sequence[Shard]) -> bytes | None:
    """Return the content of model.safetensors.index.json; None for one shard, which needs none."""
    if len(shards) == 1:
        return None
    home = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    return dump_object(
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(home.items()))}
    )
