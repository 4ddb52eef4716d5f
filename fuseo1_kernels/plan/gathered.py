"""A computed input: a tensor with one row per token, whose rows are gathered from one or more models."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from ..backends.arrays import BY_NAME, DType, promote
from .inputs import Input, Stored
from .row_tables import RowTable

#: Bytes of elements that are widened, or summed for a mean, at a time; at least one row.
PIECE = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class Gathered(Input):
    """One model's tensor with the output's rows.

    Attributes:
        own: the model's tensor as it stands.
        donors: the tensors that rows are read from, as the table numbers them.
        table: where each row comes from.
        scratch_bytes: see Input.
    """

    own: Input
    donors: tuple[Input, ...]
    table: RowTable
    scratch_bytes: int

    @classmethod
    def of(cls, own: Input, donors: tuple[Input, ...], table: RowTable) -> Gathered:
        """Return the input, with the memory that its reader takes."""
        row = prod(own.shape[1:])
        # A piece of each donor, one as numpy widens it in two steps and in fp64, and a mean's sum, row and result.
        scratch = (len(donors) + 5) * max(PIECE, 4 * row) + 3 * 8 * row
        return cls(own, donors, table, scratch + sum(x.scratch_bytes for x in donors))

    @property
    def model(self) -> str:
        return self.own.model

    @property
    def tensor(self) -> str:
        return self.own.tensor

    @property
    def dtype(self) -> DType:
        return (
            BY_NAME["float32"] if self.table.computes else promote({x.dtype for x in self.donors})
        )

    @property
    def kept_dtype(self) -> DType:
        return self.own.kept_dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.table.rows) + self.table.padding, *self.own.shape[1:])

    @property
    def stored(self) -> tuple[Stored, ...]:
        return tuple(stored for x in self.donors for stored in x.stored)

    @property
    def spec(self) -> Any:
        return ["gathered", self.shape, self.table.digest, [x.spec for x in self.donors]]
