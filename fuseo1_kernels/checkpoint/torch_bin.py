"""Weights in torch's own files (pytorch_model*.bin), behind the interface of `Source`.

Only `torch.load(weights_only=True, mmap=True)` opens them: no code in the file runs, no tensor is
copied.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .header import TensorInfo
from .source import Source, check_range, collect_shards

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


class TorchBinSource(Source):
    """A model whose weights are torch files, mapped into memory.

    The `offset` of its tensors is 0 and means nothing: torch keeps the place in the file to itself.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        tensors: Mapping[str, TensorInfo],
        config: dict[str, Any],
        data: dict[str, torch.Tensor],
    ) -> None:
        super().__init__(name, path, tensors, config, {})
        self._data = data

    @classmethod
    def open(
        cls,
        name: str,
        path: Path,
        config: dict[str, Any],
        files: Sequence[Path],
        weight_map: Mapping[str, str] | None,
    ) -> TorchBinSource:
        """Map `files` and check them against the index."""
        held = []
        data: dict[str, torch.Tensor] = {}
        for file in files:
            tensors = _load(file)
            held.append({key: _info(file, key, tensor) for key, tensor in tensors.items()})
            data.update((key, _flat_bytes(tensor)) for key, tensor in tensors.items())
        return cls(name, path, collect_shards(files, held, weight_map, path), config, data)

    def read_into(self, info: TensorInfo, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes [start, start + view.nbytes) of the tensor `info`."""
        check_range(info, start, view)
        if view.nbytes:
            target = torch.frombuffer(view, dtype=torch.uint8)
            target.copy_(self._data[info.name][start : start + view.nbytes])

    def close(self) -> None:
        """Unmap the files."""
        self._data.clear()
        super().close()


def _load(file: Path) -> dict[str, torch.Tensor]:
    try:
        data = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file}: holds Python objects besides tensors, which could run code: not opened."
            " Convert it to safetensors where you trust it"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
    # torch reports a damaged archive and its format before 1.6 (which cannot be mapped) in several
    # types.
    except Exception as error:
        raise CheckpointError(
            f"{file}: torch cannot map it: damaged, or saved by torch < 1.6;"
            f" download it again or convert it to safetensors ({_first_line(error)})"
        ) from error
    if not isinstance(data, dict) or not data:
        raise CheckpointError(f"{file}: must hold a dict of tensors, not {type(data).__name__}")
    for key, value in data.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{file}: must map names to tensors, but {key!r} is a {type(value).__name__}"
            )
    return data


def _info(file: Path, name: str, tensor: torch.Tensor) -> TensorInfo:
    dtype = DTYPE_NAMES.get(tensor.dtype)
    if dtype is None or tensor.layout is not torch.strided:
        kind = f"{tensor.layout} {tensor.dtype}".replace("torch.", "")
        raise CheckpointError(f"{file}: tensor {name!r}: {kind} is not supported")
    return TensorInfo(name, dtype, tuple(tensor.shape), file, 0, tensor.nbytes)


def _flat_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor's bytes, row-major: a view, or a copy of the rare one saved transposed."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
