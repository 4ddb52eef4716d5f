"""Weights in torch's own files (pytorch_model*.bin), as byte ranges of files like those of any other format.

Such a file is a zip archive whose entries are stored, not compressed: `data.pkl`, the pickled dict
of tensors, and `data/KEY`, the bytes of one storage each. Source:
https://docs.pytorch.org/docs/stable/notes/serialization.html#serialized-file-format

Only the structure is read here: torch's weights-only unpickler, which runs no code of the file,
builds tensors without data, and the archive's directory has the offsets of their bytes. torch.load
would map the file, and a mapped file that shrinks, or whose disk fails, raises SIGBUS. Its offsets
under FakeTensorMode need torch 2.7, and assume that the entries are in the pickle's order; here
they are looked up by name.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch._weights_only_unpickler import Unpickler

from ..errors import CheckpointError
from .files import reading
from .header import MAX_HEADER_BYTES, TensorInfo
from .identity import FileIdentity
from .source import Source, collect_shards

#: safetensors' names of torch's dtypes.
DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}

_AGAIN = "download it again"
_CONVERT = "convert the model to safetensors"

#: The name, in a pickle, of the function that rebuilds a sparse tensor.
_SPARSE = b"torch._utils\n_rebuild_sparse_tensor\n"

#: A zip entry's local header: signature, 22 bytes as in the directory, lengths of name and extra.
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_UTF8_NAME = 0x800

#: torch.storage as Any: its classes lack the annotations that mypy requires.
_storage: Any = torch.storage


def open_torch_bin(
    name: str,
    path: Path,
    config: dict[str, Any],
    files: Sequence[Path],
    weight_map: Mapping[str, str] | None,
) -> Source:
    """Return the model at `path` whose weights are the torch files `files`; no data is read.

    Raises CheckpointError, naming the file and the tensor, for an archive that is damaged, not as
    torch.save writes it, or holds anything but a dict of dense row-major tensors.
    """
    held: list[dict[str, TensorInfo]] = []
    identities: dict[Path, FileIdentity] = {}
    for file in files:
        with reading(file) as stream:
            identities[file] = FileIdentity.of(os.fstat(stream.fileno()))
            archive = _Archive(file, stream, identities[file].size)
            structure = _read_structure(archive)
            held.append({key: _info(archive, key, value) for key, value in structure.items()})
    tensors = collect_shards(files, held, weight_map, path)
    return Source(name, path, tensors, config, identities)


class _Archive:
    """The entries of one torch file, by their names below the archive's one folder."""

    def __init__(self, file: Path, stream: BinaryIO, size: int) -> None:
        self.file = file
        self._fd = stream.fileno()
        self._size = size
        self._entries: dict[str, zipfile.ZipInfo] = {}
        try:
            with zipfile.ZipFile(stream) as archive:
                entries = archive.infolist()
        except OSError:
            raise
        # zipfile reports damage with several types of exceptions.
        except Exception as error:
            raise CheckpointError(
                f"{file}: not an archive as torch.save writes it: damaged, or saved by torch < 1.6;"
                f" {_AGAIN} or {_CONVERT} ({_reason(error)})"
            ) from error
        # Like torch, which takes the folder from the first entry.
        folder = entries[0].filename.partition("/")[0] if entries else ""
        for entry in entries:
            found, _, record = entry.filename.partition("/")
            if found != folder or record in self._entries:
                raise CheckpointError(
                    f"{file}: the archive's entry {entry.filename!r} stands twice or outside of"
                    f" its folder: not written by torch.save; {_CONVERT}"
                )
            self._entries[record] = entry

    def __contains__(self, record: str) -> bool:
        return record in self._entries

    def locate(self, record: str, where: str) -> tuple[int, int]:
        """Return offset and size of an entry's bytes. Raises CheckpointError unless the file has them all."""
        entry = self._entries.get(record)
        if entry is None:
            raise CheckpointError(f"{where}: the archive has no entry {record!r}; {_AGAIN}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise CheckpointError(
                f"{where}: the archive's entry {record!r} is compressed or encrypted,"
                f" which torch.save never does; {_CONVERT}"
            )
        # The directory has the offset of the entry's header; only the header itself has its length.
        start = entry.header_offset
        encoding = "utf-8" if entry.flag_bits & _UTF8_NAME else "cp437"
        stored_name = entry.orig_filename.encode(encoding)
        header = self._read(start, _LOCAL_HEADER.size + len(stored_name))
        if len(header) == _LOCAL_HEADER.size + len(stored_name):
            signature, name_length, extra_length = _LOCAL_HEADER.unpack_from(header)
            offset = start + _LOCAL_HEADER.size + name_length + extra_length
            if (
                signature == b"PK\x03\x04"
                and name_length == len(stored_name)
                and header.endswith(stored_name)
                and entry.compress_size == entry.file_size
                and offset + entry.file_size <= self._size
            ):
                return offset, entry.file_size
        raise CheckpointError(
            f"{where}: the archive's entry {record!r} is not where its directory says: damaged;"
            f" {_AGAIN}"
        )

    def read(self, record: str) -> bytes:
        """Return a small entry's bytes (unchecked: torch.save need not write checksums)."""
        offset, size = self.locate(record, str(self.file))
        if size > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{self.file}: its entry {record!r} of {size} bytes is absurdly large"
            )
        data = self._read(offset, size)
        if len(data) < size:
            raise CheckpointError(f"{self.file}: shrank while it was read")
        return data

    def _read(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset) if 0 <= offset < self._size else b""


class _Structure(Unpickler):
    """torch's weights-only unpickler, with storages that know their entry and hold no data."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._storages: dict[str, torch.storage.TypedStorage] = {}

    def persistent_load(self, pid: Any) -> torch.storage.TypedStorage:
        """Return the storage with the pickle's id ("storage", type, key, location, numel)."""
        _, kind, key, _, numel = pid
        if key not in self._storages:
            dtype = torch.uint8 if kind is torch.UntypedStorage else kind.dtype
            nbytes = numel * dtype.itemsize
            storage = _storage.UntypedStorage(nbytes, device="meta")
            # The storage's own size may change: a view that reaches past a storage on meta makes it grow.
            storage.entry = f"data/{key}", nbytes
            self._storages[key] = _storage.TypedStorage(
                wrap_storage=storage, dtype=dtype, _internal=True
            )
        return self._storages[key]


def _read_structure(archive: _Archive) -> dict[str, torch.Tensor]:
    """Return the file's dict of tensors, which are on the meta device."""
    file = archive.file
    if "byteorder" in archive and archive.read("byteorder") != b"little":
        raise CheckpointError(
            f"{file}: not saved in little-endian byte order; load it with torch and {_CONVERT}"
        )
    data = archive.read("data.pkl")
    if _SPARSE in data:
        # torch would keep them in a list, and fail to validate them after some later torch.load.
        raise CheckpointError(f"{file}: sparse tensors are not supported; save them as dense ones")
    try:
        unpickler: Any = _Structure(data)  # `load` has no annotations either
        tensors = unpickler.load()
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: holds Python objects besides tensors, which could run code: not opened."
            " Convert it to safetensors where you trust it"
        ) from error
    # torch reports damage, and tensors that it cannot build without data, with several types of exceptions.
    except Exception as error:
        raise CheckpointError(
            f"{file}: torch cannot build its tensors: damaged, or of a kind that is not supported"
            f" (quantized ones, say); {_AGAIN} or {_CONVERT} ({_reason(error)})"
        ) from error
    if not isinstance(tensors, dict) or not tensors:
        raise CheckpointError(f"{file}: must hold a dict of tensors, not {type(tensors).__name__}")
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{file}: must map names to tensors, but {key!r} is a {type(value).__name__}"
            )
    return tensors


def _info(archive: _Archive, name: str, tensor: torch.Tensor) -> TensorInfo:
    """Return the place of the bytes of `tensor`. Raises CheckpointError unless they are complete and row-major."""
    where = f"{archive.file}: tensor {name!r}"
    if any("\ud800" <= char <= "\udfff" for char in name):
        raise CheckpointError(f"{where}: its name is not valid Unicode")
    dtype = DTYPE_NAMES.get(tensor.dtype)
    if dtype is None or tensor.layout is not torch.strided:
        kind = f"{tensor.layout} {tensor.dtype}".replace("torch.", "")
        raise CheckpointError(f"{where}: {kind} is not supported")
    if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        raise CheckpointError(
            f"{where}: does not lie row-major in the file (saved transposed, or as another view);"
            f" save it again after .contiguous(), or {_CONVERT}"
        )
    entry = getattr(tensor.untyped_storage(), "entry", None)
    if entry is None:
        raise CheckpointError(f"{where}: the file has no data of it (saved from the meta device?)")
    record, storage_size = entry
    offset, size = archive.locate(record, where)
    start = int(tensor.storage_offset()) * tensor.element_size()
    nbytes = math.prod(tensor.shape) * tensor.element_size()
    if not 0 <= start <= start + nbytes <= storage_size <= size:
        raise CheckpointError(
            f"{where}: is the bytes [{start}, {start + nbytes}) of a storage of"
            f" {storage_size}, for which the archive's entry {record!r} has {size}: damaged;"
            f" {_AGAIN}"
        )
    return TensorInfo(name, dtype, tuple(tensor.shape), archive.file, offset + start, nbytes)


def _reason(error: Exception) -> str:
    """Return the first line of the message, shortened: torch's can fill a page."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else f"{line[:200]} ..."
