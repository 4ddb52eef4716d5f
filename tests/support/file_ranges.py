"""Tensors in files, as backends read them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fuseo1_kernels.backends.interface import FileRange
from fuseo1_kernels.in_memory.ops import as_arrays
from support.tensors import bits


@contextmanager
def stored(folder: Path, tensors: Sequence[torch.Tensor]) -> Iterator[list[FileRange]]:
    """Each tensor in a file of its own, from its eighth byte on."""
    ranges, start = [], 8
    for i, (tensor, array) in enumerate(zip(tensors, as_arrays(tensors), strict=True)):
        (folder / str(i)).write_bytes(b"\0" * start + bits(tensor).numpy().tobytes())
        ranges.append(FileRange(os.open(folder / str(i), os.O_RDONLY), start, array.dtype))
    try:
        yield ranges
    finally:
        for file in ranges:
            os.close(file.fd)
