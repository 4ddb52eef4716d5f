"""Weights in torch's own files (pytorch_model*.bin), as byte ranges of files like those of any other format.

Such a file is a zip archive whose entries are stored, not compressed: `data.pkl`, the pickled dict
of tensors, and `data/KEY`, the bytes of one storage each. Source:
https://docs.pytorch.org/docs/stable/notes/serialization.html#serialized-file-format

Only the structure is read here (`torch_pickle`), and the archive's directory has the offsets of the tensors' bytes,
looked up by name. torch.load would map the file, and a mapped file that shrinks, or whose disk fails, raises SIGBUS;
and its weights-only unpickler calls what a pickle asks for, `bytearray(1 << 40)` too.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any, BinaryIO

from ..errors import CheckpointError
from .files import reading
from .header import DTYPE_BYTES, HeaderRoom, TensorInfo
from .identity import FileIdentity
from .source import Source, collect_shards
from .torch_pickle import Rebuilt, read_tensors

#: safetensors' names of torch's dtypes.
DTYPE_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}

#: The most bytes of the pickle, and of the archive's directory: 200,000 tensors have less.
MAX_PICKLE_BYTES = 32 << 20
MAX_DIRECTORY_BYTES = 16 << 20

# A pickle's bytes take so many times their number while they are read.
_READ = 16

_AGAIN = "download it again"
_CONVERT = "convert the model to safetensors"

#: A zip entry's local header: signature, 22 bytes as in the directory, lengths of name and extra.
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_UTF8_NAME = 0x800


def open_torch_bin(
    name: str,
    path: Path,
    config: dict[str, Any],
    files: Sequence[Path],
    weight_map: Mapping[str, str] | None,
    room: HeaderRoom | None = None,
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
            if room:
                room.take(file, archive.size_of("data.pkl"), _READ)
            structure = _read_structure(archive)
            held.append({key: _info(archive, key, value) for key, value in structure.items()})
    tensors = collect_shards(files, held, weight_map, path)
    return Source(name, path, tensors, config, identities)


class _Directory:
    """The stream as zipfile reads it, which takes the archive's directory in one piece, whatever its size."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self._file, self._stream = file, stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, nbytes: int = -1) -> bytes:
        most = MAX_DIRECTORY_BYTES + 1
        data = self._stream.read(min(nbytes, most) if nbytes >= 0 else most)
        if len(data) == most:
            raise CheckpointError(
                f"{self._file}: its archive's directory has more than {MAX_DIRECTORY_BYTES} bytes:"
                " absurdly many"
            )
        return data


class _Archive:
    """The entries of one torch file, by their names below the archive's one folder."""

    def __init__(self, file: Path, stream: BinaryIO, size: int) -> None:
        self.file = file
        self._fd = stream.fileno()
        self._size = size
        self._entries: dict[str, zipfile.ZipInfo] = {}
        try:
            with zipfile.ZipFile(_Directory(file, stream)) as archive:
                entries = archive.infolist()
        except (OSError, CheckpointError):
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
                    f"{file}: the archive's entry {short(entry.filename)} stands twice or outside of"
                    f" its folder: not written by torch.save; {_CONVERT}"
                )
            self._entries[record] = entry

    def __contains__(self, record: str) -> bool:
        return record in self._entries

    def size_of(self, record: str) -> int:
        """Return the bytes of an entry, as the directory states them; 0 if there is none."""
        return self._entries[record].file_size if record in self._entries else 0

    def locate(self, record: str, where: str) -> tuple[int, int]:
        """Return offset and size of an entry's bytes. Raises CheckpointError unless the file has them all."""
        entry = self._entries.get(record)
        if entry is None:
            raise CheckpointError(f"{where}: the archive has no entry {short(record)}; {_AGAIN}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise CheckpointError(
                f"{where}: the archive's entry {short(record)} is compressed or encrypted,"
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
            f"{where}: the archive's entry {short(record)} is not where its directory says: damaged;"
            f" {_AGAIN}"
        )

    def read(self, record: str) -> bytes:
        """Return a small entry's bytes (unchecked: torch.save need not write checksums)."""
        offset, size = self.locate(record, str(self.file))
        if size > MAX_PICKLE_BYTES:
            raise CheckpointError(
                f"{self.file}: its entry {short(record)} of {size} bytes is absurdly large"
            )
        data = self._read(offset, size)
        if len(data) < size:
            raise CheckpointError(f"{self.file}: shrank while it was read")
        return data

    def _read(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset) if 0 <= offset < self._size else b""


def _read_structure(archive: _Archive) -> dict[str, Rebuilt]:
    """Return the file's tensors by name."""
    if "byteorder" in archive and archive.read("byteorder") != b"little":
        raise CheckpointError(
            f"{archive.file}: not saved in little-endian byte order; load it with torch and {_CONVERT}"
        )
    return read_tensors(archive.read("data.pkl"), str(archive.file))


def _info(archive: _Archive, name: str, tensor: Rebuilt) -> TensorInfo:
    """Return the place of the bytes of `tensor`. Raises CheckpointError unless they are complete and row-major."""
    where = f"{archive.file}: tensor {short(name)}"
    if any("\ud800" <= char <= "\udfff" for char in name):
        raise CheckpointError(f"{where}: its name is not valid Unicode")
    if name == "__metadata__":
        raise CheckpointError(f"{where}: safetensors files can hold no tensor of this name")
    dtype = DTYPE_NAMES.get(tensor.dtype)
    if dtype is None:
        raise CheckpointError(f"{where}: {tensor.dtype} is not supported")
    if tensor.storage is None:
        raise CheckpointError(f"{where}: the file has no data of it (saved from the meta device?)")
    if not tensor.plain or not _is_row_major(tensor):
        raise CheckpointError(
            f"{where}: does not lie row-major in the file (saved transposed, or as another view);"
            f" save it again after .contiguous(), or {_CONVERT}"
        )
    record = f"data/{tensor.storage.key}"
    offset, size = archive.locate(record, where)
    stored = DTYPE_BYTES.get(DTYPE_NAMES.get(tensor.storage.dtype, ""), 0) * tensor.storage.numel
    start = tensor.offset * DTYPE_BYTES[dtype]
    nbytes = math.prod(tensor.shape) * DTYPE_BYTES[dtype]
    if not 0 <= start <= start + nbytes <= stored <= size:
        raise CheckpointError(
            f"{where}: is the bytes [{start}, {start + nbytes}) of a storage of"
            f" {stored}, for which the archive's entry {short(record)} has {size}: damaged;"
            f" {_AGAIN}"
        )
    return TensorInfo(name, dtype, tensor.shape, archive.file, offset + start, nbytes)


def _is_row_major(tensor: Rebuilt) -> bool:
    expected = 1
    for n, stride in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        if n != 1 and stride != expected and 0 not in tensor.shape:
            return False
        expected *= n
    return True


def _reason(error: Exception) -> str:
    """Return the first line of the message, shortened: torch's can fill a page."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else f"{line[:200]} ..."
