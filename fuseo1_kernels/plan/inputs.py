"""The inputs of a merged tensor: tensors in files, and tensors that are computed while they are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from ..backends.arrays import BY_CODE, BY_NAME, DType
from ..checkpoint.header import DTYPE_BYTES, INTEGERS, TensorInfo
from ..checkpoint.scales import CODES, Scaled
from ..checkpoint.source import Source

#: Elements of a tensor of codes that are decoded at a time.
DECODED_AT_ONCE = 1 << 20

#: Types of tensors that are copied or decoded: no backend has a number for them.
STORED = BY_CODE | {c: DType(c, c, -1, DTYPE_BYTES[c]) for c in INTEGERS | CODES}


class Input(ABC):
    """What one model gives to a merged tensor. A subclass is a description, without tensor data.

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
    def merged_dtype(self) -> DType:
        """The dtype that it asks of the merged tensor, where the config names none."""
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


@dataclass(frozen=True, slots=True)
class Decoded(Input):
    """A matrix of codes of 8 bits, each times the scale of its block, in fp32 (docs/arithmetic.md).

    Attributes:
        codes: the tensor of codes.
        scaled: its scales and their blocks.
    """

    codes: Stored
    scaled: Scaled

    @property
    def model(self) -> str:
        return self.codes.model

    @property
    def tensor(self) -> str:
        return self.codes.tensor

    @property
    def dtype(self) -> DType:
        return BY_NAME["float32"]

    @property
    def merged_dtype(self) -> DType:
        return BY_NAME["bfloat16"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def stored(self) -> tuple[Stored, ...]:
        return (self.codes, *([] if self.scales is None else [self.scales]))

    @property
    def scales(self) -> Stored | None:
        scale = self.scaled.scale
        return None if scale is None else Stored(self.codes.source, scale)

    @property
    def spec(self) -> Any:
        return ["decoded", self.codes.info.dtype, self.scaled.block]

    @property
    def scratch_bytes(self) -> int:
        # A piece of codes; the scales, as stored and in fp32.
        scales = 1 if self.scales is None else self.scales.info.numel
        return DECODED_AT_ONCE + 8 * scales


def input_of(source: Source, info: TensorInfo) -> Input:
    """Return the tensor `info` of a model, decoded if it holds codes."""
    stored, scaled = Stored(source, info), source.scales.get(info.name)
    return stored if scaled is None else Decoded(stored, scaled)
