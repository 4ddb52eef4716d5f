"""Element types and views of memory: backends take these instead of any framework's tensors."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import suppress
from ctypes import addressof, c_char
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DType:
    """A floating-point type: its torch name, its safetensors code, its C ABI number and its bytes."""

    name: str
    code: str
    abi: int
    size: int


DTYPES = (
    DType("bfloat16", "BF16", 0, 2),
    DType("float16", "F16", 1, 2),
    DType("float32", "F32", 2, 4),
)
BY_NAME = {d.name: d for d in DTYPES}
BY_CODE = {d.code: d for d in DTYPES}


def promote(dtypes: set[DType]) -> DType:
    """The narrowest type that holds all of `dtypes` (torch's and mergekit's promotion)."""
    return next(iter(dtypes)) if len(dtypes) == 1 else BY_NAME["float32"]


@dataclass(frozen=True)
class Array:
    """`numel` consecutive elements of `dtype` at `address` in this process's memory, kept alive by `owner`."""

    address: int
    dtype: DType
    numel: int
    owner: Any = None

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.size

    @property
    def view(self) -> memoryview:
        """Its bytes, writable. Keeps `owner` alive no longer than the array does."""
        return memoryview((c_char * self.nbytes).from_address(self.address)).cast("B")

    def part(self, start: int, count: int) -> Array:
        """Elements [start, start + count). Raises IndexError."""
        if not 0 <= start <= start + count <= self.numel:
            raise IndexError(f"[{start}, {start + count}) of {self.numel} elements")
        return Array(self.address + start * self.dtype.size, self.dtype, count, self.owner)

    def pieces(self, most: int) -> Iterator[tuple[int, Array]]:
        """Yield (start, part) of parts of at most `most` elements, one after the other."""
        for start in range(0, self.numel, most):
            yield start, self.part(start, min(most, self.numel - start))


@dataclass(frozen=True)
class Numbers:
    """`count` consecutive fp64 numbers at `address` in this process's memory, kept alive by `owner`."""

    address: int
    count: int
    owner: Any = None

    def part(self, start: int, count: int) -> Numbers:
        """Numbers [start, start + count). Raises IndexError."""
        if not 0 <= start <= start + count <= self.count:
            raise IndexError(f"[{start}, {start + count}) of {self.count} numbers")
        return Numbers(self.address + start * 8, count, self.owner)


def advise_huge_pages(address: int, nbytes: int) -> None:
    """Ask for huge pages under memory that is about to be written for the first time.

    Faulting in 4 KiB pages one by one costs more than a merge. Advice only: a no-op on systems without them.
    """
    if hasattr(mmap, "MADV_HUGEPAGE"):
        start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        length = address + nbytes - start
        if length > 0:
            madvise = ctypes.CDLL(None).madvise
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)


class Buffer:
    """`nbytes` of page-aligned memory, unmapped when the buffer is collected.

    Raises OSError if it cannot be allocated.
    """

    def __init__(self, nbytes: int) -> None:
        self._map = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without huge pages
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(self._map)
        self._first = c_char.from_buffer(self._map)
        self.address = addressof(self._first)
        self.nbytes = nbytes

    def array(self, dtype: DType, numel: int, offset: int = 0) -> Array:
        """The `numel` elements of `dtype` that start `offset` bytes into the buffer. Raises IndexError."""
        if offset + numel * dtype.size > self.nbytes:
            raise IndexError(f"{numel} elements at byte {offset} of a buffer of {self.nbytes}")
        return Array(self.address + offset, dtype, numel, self)
