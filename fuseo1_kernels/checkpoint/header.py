"""Reads the header of a safetensors file, as strictly as the format demands, and writes it.

Format: 8 bytes of little-endian length n, n bytes of JSON (padded with spaces), then the tensors'
bytes, which cover the rest of the file without overlap or hole. Source:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any, NamedTuple

from ..errors import CheckpointError, mib
from .files import reading
from .identity import FileIdentity
from .json_file import parse_object

#: Bytes per element of every safetensors dtype of whole bytes; F4 and F6, which are smaller, are
#: refused.
DTYPE_BYTES: dict[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}

#: The dtypes that can be merged.
MERGEABLE = frozenset({"BF16", "F16", "F32"})
#: The dtypes of positions, counters and masks, which are copied where all models have the same.
INTEGERS = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})

#: The format's own limit on the JSON.
MAX_HEADER_BYTES = 100_000_000

#: Tensor data starts at a multiple of this (the format asks for 8; a cache line serves mmap and
#: SIMD).
ALIGNMENT = 64

# A header's bytes take so many times their number while they are read.
_READ = 7

_METADATA = "__metadata__"
_KEYS = ("dtype", "shape", "data_offsets")
_MAX_INT = 2**63 - 1


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor and its place: `nbytes` bytes at the absolute `offset` of `file`, row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        """The number of elements; 1 for a 0-d tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The header of `file`, its first `size` bytes; `tensors` in the order of their bytes."""

    file: Path
    size: int
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    identity: FileIdentity


class HeaderRoom:
    """The memory that headers may take: one that does not fit is refused before it is read."""

    def __init__(self, nbytes: int) -> None:
        self._most = nbytes
        self._kept = 0

    def take(self, file: Path, length: int, times: int = _READ) -> None:
        """Count the header of `file`, which has `length` bytes, and takes so many times that while it is read.

        Raises CheckpointError if it does not fit.
        """
        least = self._kept + length * times
        if least > self._most:
            raise CheckpointError(
                f"{file}: --max-memory {self._most >> 20} MiB is too little to read its header of {length} bytes,"
                f" which takes {mib(least)} with those before"
            )
        self._kept += length


def read_header(file: Path, room: HeaderRoom | None = None) -> Header:
    """Read and check the header of `file`; no tensor data is read. Without `room` any header is read.

    Raises CheckpointError, naming the file and the tensor, for anything that the format forbids.
    """
    text, identity = _read_text(file, room)
    file_size = identity.size
    data_start = 8 + len(text)
    if not text.startswith(b"{"):
        raise CheckpointError(
            f"{file}: not a safetensors file: its header does not start with '{{'"
        )
    entries = parse_object(
        text, f"{file}: header", unique_keys=True, strict=True, compact=_Compact(), max_memory=None
    )
    del text
    metadata = _metadata(file, entries.pop(_METADATA, {}))

    infos = []
    while entries:  # one by one, so that they do not take memory twice
        name, entry = entries.popitem()
        infos.append(_tensor(file, sys.intern(name), entry, data_start))
    infos.reverse()
    infos.sort(key=lambda info: (info.offset, info.nbytes))
    end = data_start
    last = "the header"
    for info in infos:
        if info.offset < end:
            raise CheckpointError(f"{file}: tensor {info.name!r} overlaps {last}")
        if info.offset > end:
            raise CheckpointError(
                f"{file}: {info.offset - end} bytes between {last} and tensor {info.name!r}"
                " belong to no tensor"
            )
        end += info.nbytes
        last = f"tensor {info.name!r}"
    if end > file_size:
        raise CheckpointError(
            f"{file}: truncated: it has {file_size} bytes, its header promises {end};"
            " download or copy it again"
        )
    if end < file_size:
        raise CheckpointError(f"{file}: {file_size - end} bytes after {last} belong to no tensor")
    return Header(file, data_start, {info.name: info for info in infos}, metadata, identity)


def write_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """Return all bytes before the data of a file of `tensors` (name, dtype, shape), in that order.

    The tensors' bytes are contiguous; the first starts at `len(result)`, a multiple of ALIGNMENT.
    """
    header = bytearray(8)
    separator, offset = b"{", 0

    def add(name: str, entry: Any) -> None:  # one by one: there may be many thousands
        nonlocal separator
        header.extend(separator + _dump(name) + b":" + _dump(entry))
        separator = b","

    if metadata:
        add(_METADATA, dict(metadata))
    names = {_METADATA}
    for name, dtype, shape in tensors:
        if name in names:
            raise ValueError(f"tensor {name!r} cannot be written twice to one file")
        names.add(name)
        end = offset + math.prod(shape) * DTYPE_BYTES[dtype]
        add(name, {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]})
        offset = end
    header += b"}" if separator == b"," else b"{}"
    header += b" " * (-len(header) % ALIGNMENT)
    header[:8] = (len(header) - 8).to_bytes(8, "little")
    return bytes(header)


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _read_text(file: Path, room: HeaderRoom | None) -> tuple[bytes, FileIdentity]:
    """Return the JSON part of the header, and the identity of the file it was read from."""
    with reading(file) as stream:
        identity = FileIdentity.of(os.fstat(stream.fileno()))
        file_size = identity.size
        prefix = stream.read(8)
        if prefix == b"version ":
            raise CheckpointError(f"{file}: a git-lfs pointer, not the weights; run `git lfs pull`")
        if len(prefix) < 8:
            raise CheckpointError(f"{file}: truncated: {file_size} bytes cannot hold a header")
        length = int.from_bytes(prefix, "little")
        if 8 + length > file_size:
            raise CheckpointError(
                f"{file}: not a safetensors file, or truncated: its header claims"
                f" {length} bytes, the file has {file_size}"
            )
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{file}: header of {length} bytes; the format allows {MAX_HEADER_BYTES}"
            )
        if room:
            room.take(file, length)
        text = stream.read(length)
    if len(text) < length:
        raise CheckpointError(f"{file}: shrank while it was read")
    return text, identity


def _metadata(file: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise CheckpointError(f"{file}: {_METADATA} must map strings to strings")
    return value


class _Kind(NamedTuple):
    """Properties that tensors of one dtype and shape share."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class _Entry(NamedTuple):
    """An entry of the header that is right by itself."""

    kind: _Kind
    begin: int


class _Compact:
    """Makes an _Entry of an object that is one, and leaves others as they are: there may be many thousands."""

    def __init__(self) -> None:
        self._kinds: dict[_Kind, _Kind] = {}

    def __call__(self, items: dict[str, Any]) -> Any:
        if len(items) != len(_KEYS):
            return items
        try:
            kind, begin = _checked(items, "")
        except CheckpointError:  # raised again where the tensor's name is known
            return items
        return _Entry(self._kinds.setdefault(kind, kind), begin)


def _tensor(file: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    """Return the tensor of an entry that is right by itself; the caller checks for overlaps and holes."""
    if not isinstance(entry, _Entry):
        entry = _checked(entry, f"{file}: tensor {name!r}")
    (dtype, shape, nbytes), begin = entry
    return TensorInfo(name, dtype, shape, file, data_start + begin, nbytes)


def _checked(entry: Any, where: str) -> _Entry:
    """Check an entry by itself. Raises CheckpointError, whose message begins with `where`."""
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where}: its entry must be a JSON object")
    for key in _KEYS:
        if key not in entry:
            raise CheckpointError(f"{where}: its entry has no {key!r}")

    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CheckpointError(f"{where}: unknown dtype {short(dtype)}")
    shape = _sizes(entry["shape"])
    if shape is None:
        raise CheckpointError(
            f"{where}: shape must be a list of sizes, not {short(entry['shape'])}"
        )
    offsets = _sizes(entry["data_offsets"])
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{where}: data_offsets must be [begin, end] with 0 <= begin <= end,"
            f" not {short(entry['data_offsets'])}"
        )

    begin, end = offsets
    nbytes = DTYPE_BYTES[dtype]
    for size in shape:
        nbytes *= size
        if nbytes > _MAX_INT:
            raise CheckpointError(f"{where}: shape {list(shape)} is absurdly large")
    if nbytes != end - begin:
        raise CheckpointError(
            f"{where}: shape {list(shape)} of {dtype} is {nbytes} bytes,"
            f" but data_offsets span {end - begin}"
        )
    return _Entry(_Kind(sys.intern(dtype), shape, nbytes), begin)


def _sizes(value: Any) -> tuple[int, ...] | None:
    """Return a JSON list of sizes as a tuple, None if it is anything else (`true` is no size)."""
    if isinstance(value, list) and all(type(n) is int and 0 <= n <= _MAX_INT for n in value):
        return tuple(value)
    return None
