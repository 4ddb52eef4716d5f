"""The inputs of a merged tensor: tensors in files, and tensors that are computed while they are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ..backends.arrays import BY_CODE, BY_NAME, DType
from ..checkpoint.folds import Fold
from ..checkpoint.header import DTYPE_BYTES, INTEGERS, TensorInfo
from ..checkpoint.source import Source

#: Types of tensors that are copied: no backend has a number for them.
STORED = BY_CODE | {code: DType(code, code, -1, DTYPE_BYTES[code]) for code in INTEGERS}


# Elements of a matrix that an adapter is added to at a time, and threads that have a row of their own for its norms.
_PIECE = 1 << 19
_MOST_THREADS = 64


class Input(ABC):
    """What one model gives to a merged tensor. A subclass is a description, without tensor data.

    `engine/cpu/readers.py` reads it. Its elements depend on `stored` and `spec` alone.
    """

    __slots__ = ()

    #: The most bytes that reading it takes, besides the elements that are read.
    scratch_bytes: int = 0

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
class Folded(Input):
    """A matrix with an adapter added to it, W + s * L R, in fp32 (docs/arithmetic.md).

    Attributes:
        weights: W.
        fold: s, L and R.
        columns: of W; its rows are its first dimension, or one if it is a vector.
        piece: the most elements that are folded at a time: whole rows, if the adapter is a DoRA.
        scratch_bytes: see Input.
    """

    weights: Stored
    fold: Fold
    columns: int
    piece: int
    scratch_bytes: int

    @classmethod
    def of(cls, weights: Stored, fold: Fold) -> Folded:
        """Return the input, with the memory that its reader takes."""
        shape, rank = weights.shape, fold.rank
        columns = shape[0] if fold.left is None else prod(shape[1:])
        piece = _PIECE
        # R, and for one piece the weights and the rows of L: each as stored and in fp32.
        if fold.magnitude is not None:
            piece = max(_PIECE // columns, 1) * columns
        rows = piece // columns + 2
        nbytes = 8 * (rank * columns + rows * rank + piece)
        if fold.magnitude is not None:
            nbytes += 12 * fold.magnitude.numel + 4 * columns * _MOST_THREADS
        return cls(weights, fold, columns, piece, nbytes)

    @property
    def model(self) -> str:
        return self.weights.model

    @property
    def tensor(self) -> str:
        return self.weights.tensor

    @property
    def dtype(self) -> DType:
        return BY_NAME["float32"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weights.shape

    @property
    def stored(self) -> tuple[Stored, ...]:
        source = self.weights.source
        return (self.weights, *(Stored(source, info) for info in self.fold.infos))

    @property
    def spec(self) -> Any:
        fold = self.fold
        has = [fold.left is not None, fold.magnitude is not None]
        return ["fold", self.columns, fold.rank, fold.scale, fold.transposed, *has]

    @property
    def rows(self) -> int:
        return 1 if self.fold.left is None else self.shape[0]


def input_of(source: Source, info: TensorInfo) -> Input:
    """Return the tensor `info` of a model, with the adapter that is added to it, if there is one."""
    stored = Stored(source, info)
    fold = source.folds.by_tensor.get(info.name) if source.folds else None
    return stored if fold is None or info.numel == 0 else Folded.of(stored, fold)
