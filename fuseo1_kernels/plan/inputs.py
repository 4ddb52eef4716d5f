"""The inputs of a merged tensor: tensors in files, and tensors that are computed while they are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from ..backends.arrays import BY_CODE, DType
from ..checkpoint.header import DTYPE_BYTES, INTEGERS, TensorInfo
from ..checkpoint.scales import CODES
from ..checkpoint.source import Source

#: Types of tensors that are copied or decoded: no backend has a number for them.
STORED = BY_CODE | {c: DType(c, c, -1, DTYPE_BYTES[c]) for c in INTEGERS | CODES}


class Input(ABC):
    """One model's share in a merged tensor. A subclass is a description, without tensor data.

    `engine/cpu/readers.py` reads it. Its elements depend on `stored` and `spec` alone.
    """

    __slots__ = ()

    @property
    def scratch_bytes(self) -> int:
        """The most bytes that reading it takes, besides the elements that are read."""
        return 0

    @property
    @abstractmethod
    def model(self) -> str:
        """The model's name, for messages."""

    @property
    @abstractmethod
    def tensor(self) -> str:
        """The tensor's name in that model, for messages."""

    @property
    @abstractmethod
    def dtype(self) -> DType: ...

    @property
    def kept_dtype(self) -> DType:
        """The output's dtype if the config names none."""
        return self.dtype

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @property
    @abstractmethod
    def stored(self) -> tuple[Stored, ...]:
        """The tensors in files that it is computed from."""

    @property
    @abstractmethod
    def spec(self) -> Any:
        """In JSON's types, how it is computed from them; None: it is one of them, as it stands."""


@dataclass(frozen=True, slots=True)
class Stored(Input):
    """A tensor in a model's file."""

    source: Source
    info: TensorInfo

    @property
    def model(self) -> str:
        return self.source.name

    @property
    def tensor(self) -> str:
        return self.info.name

    @property
    def dtype(self) -> DType:
        return STORED[self.info.dtype]

    @property
    def kept_dtype(self) -> DType:
        dtypes = self.source.folds.dtypes if self.source.folds else {}
        return STORED[dtypes.get(self.info.name, self.info.dtype)]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    @property
    def stored(self) -> tuple[Stored, ...]:
        return (self,)

    @property
    def spec(self) -> None:
        return None

    def part(self, start: int, numel: int) -> Stored:
        """Return `numel` elements from flat index `start` on, as a one-dimensional input."""
        size = self.dtype.size
        offset = self.info.offset + start * size
        return replace(
            self, info=replace(self.info, shape=(numel,), offset=offset, nbytes=numel * size)
        )
