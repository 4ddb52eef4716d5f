"""A computed input: a tensor with an adapter added to it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from ..backends.arrays import BY_NAME, DType
from ..checkpoint.folds import Fold
from .inputs import Input, Stored

# Elements of a matrix that an adapter is added to at a time, and threads that have a row of their own for its norms.
_PIECE = 1 << 19
_MOST_THREADS = 64


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
    def kept_dtype(self) -> DType:
        return self.weights.kept_dtype

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
