"""An adapter's changes to the tensors of a model, as places of tensors in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .header import TensorInfo


@dataclass(frozen=True, slots=True)
class Fold:
    """W + scale * left right, of a matrix W of rows and columns; with `magnitude`, DoRA's.

    Attributes:
        left: rows x rank; None: a single 1, for a vector W.
        right: rank x columns.
        rank: of both.
        scale: the factor of the product.
        transposed: the files have rank x rows for left and columns x rank for right; magnitudes belong to columns, else
            to rows.
        magnitude: one for each row or column; None: there are none.
    """

    left: TensorInfo | None
    right: TensorInfo
    rank: int
    scale: float
    transposed: bool = False
    magnitude: TensorInfo | None = None

    @property
    def infos(self) -> tuple[TensorInfo, ...]:
        """The adapter's tensors that are read."""
        return tuple(x for x in (self.left, self.right, self.magnitude) if x is not None)


@dataclass(frozen=True)
class Folds:
    """An adapter that is added to a model.

    Attributes:
        path: the adapter's directory.
        by_tensor: by name of a tensor of the model, what is added to it.
        dtypes: by name of a tensor that the adapter has in place of the model's, the code of that one's dtype.
    """

    path: Path
    by_tensor: Mapping[str, Fold]
    dtypes: Mapping[str, str]
