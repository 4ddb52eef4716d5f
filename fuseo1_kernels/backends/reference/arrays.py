"""Arrays as torch tensors."""

from __future__ import annotations

import ctypes

import torch

from ..arrays import Array

TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def as_tensor(array: Array) -> torch.Tensor:
    """Return the array's memory as a flat tensor."""
    dtype = TORCH[array.dtype.name]
    if array.numel == 0:
        return torch.empty(0, dtype=dtype)
    memory = (ctypes.c_char * (array.numel * array.dtype.size)).from_address(array.address)
    return torch.frombuffer(memory, dtype=dtype)
