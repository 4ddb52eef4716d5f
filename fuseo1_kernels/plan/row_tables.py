"""Decides where each row of a tensor comes from that is gathered by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import xxhash

from ..errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: In `RowTable.donors`: a row of zeros, and the mean of the rows of all models that have the token.
ZERO, MEAN = -1, -2


@dataclass(frozen=True)
class ChosenRow:
    """A token's row as the config names it.

    Attributes:
        where: the token's place in the config, for messages.
        given: whether the config names a source.
        model: the model whose row it is; None: a row of zeros.
        row: the row's index there; None: that of the same token.
        force: also for models that have the token.
    """

    where: str
    given: bool
    model: str | None
    row: int | None
    force: bool


@dataclass(frozen=True, eq=False)
class RowTable:
    """The origin of each row of one model's gathered tensor.

    Attributes:
        models: indices of the models, among those that are merged, whose tensors are read.
        donors: by row, an index into `models`, ZERO or MEAN; int16.
        rows: by row, the row there; of a MEAN, its own index; int32.
        members: the rows of all of `models` by id, -1 where one has none, shape (models, rows); only where a MEAN is.
        padding: how many rows follow, each the mean of all those before.
    """

    models: tuple[int, ...]
    donors: NDArray[np.int16]
    rows: NDArray[np.int32]
    members: NDArray[np.int32] | None
    padding: int

    @property
    def computes(self) -> bool:
        """Whether any row is a mean, so that the elements may need more bits than the models'."""
        return self.padding > 0 or self.members is not None

    @cached_property
    def digest(self) -> str:
        """A checksum of everything above but the models."""
        found = xxhash.xxh3_128(f"{self.padding}".encode())
        for part in (self.donors, self.rows, self.members):
            found.update(b"" if part is None else part.tobytes())
        return found.hexdigest()

    @property
    def nbytes(self) -> int:
        members = 0 if self.members is None else self.members.nbytes
        return self.donors.nbytes + self.rows.nbytes + members


def make_tables(
    ids: Sequence[Sequence[int]],
    models: Sequence[str],
    base: str | None,
    chosen: Mapping[int, ChosenRow],
    padding: int,
) -> tuple[RowTable | None, ...]:
    """Return the table of each model; None if its first rows are the output's as they are.

    A token that a model lacks has the row that the config names, else that of the only model that has it, else the
    base's, else the mean; a row of zeros if nobody has it.

    Args:
        ids: by model, for each id of the output the model's row; -1: it has none.
        models: the models' names, as `base` and `chosen` have them.
        base: the base, or None.
        chosen: the rows that the config names, by id.
        padding: how many rows follow those of `ids`.

    Raises:
        CheckpointError: a model has no row that is asked of it.
    """
    import numpy as np  # only merges that gather rows wait for its import

    found = np.array([np.frombuffer(each, np.int32) for each in ids])  # type: ignore[call-overload]
    has = found >= 0
    number, every = has.sum(0), np.arange(found.shape[1], dtype=np.int32)
    donors = np.where(number > 1, MEAN, np.where(number == 1, has.argmax(0), ZERO)).astype(np.int16)
    if base is not None and base in models:
        place = list(models).index(base)
        donors[(number > 1) & has[place]] = place
    rows = np.where(donors >= 0, found[np.maximum(donors, 0), every], every).astype(np.int32)
    forced = np.zeros(len(every), bool)
    for index, row in chosen.items():
        if row.force or number[index] < len(models):
            forced[index] = row.force
            donors[index], rows[index] = _find(row, index, found, models)
    tables = []
    for own in range(len(models)):
        keep = has[own] & ~forced
        tables.append(
            _table(
                own, np.where(keep, own, donors), np.where(keep, found[own], rows), found, padding
            )
        )
    return tuple(tables)


def _find(
    chosen: ChosenRow, index: int, ids: NDArray[np.int32], models: Sequence[str]
) -> tuple[int, int]:
    """Return the donor and the row that the config names for the id `index`."""
    if not chosen.given:
        lacking = next(m for m, row in zip(models, ids[:, index], strict=True) if row < 0)
        raise CheckpointError(
            f"{chosen.where}: model {lacking} has no row for it; give its `source`"
        )
    if chosen.model is None:
        return ZERO, index
    if chosen.model not in models:
        raise CheckpointError(
            f"{chosen.where}: model {chosen.model} is not merged there, so it has no row to take"
        )
    donor = list(models).index(chosen.model)
    row = int(ids[donor, index]) if chosen.row is None else chosen.row
    if row < 0:
        raise CheckpointError(f"{chosen.where}: model {chosen.model} has no such token")
    return donor, row


def _table(
    own: int,
    donors: NDArray[np.int16],
    rows: NDArray[np.int32],
    ids: NDArray[np.int32],
    padding: int,
) -> RowTable | None:
    """Return the table of the model number `own`, with no more models than it reads."""
    import numpy as np

    if not padding and (donors == own).all() and (rows == np.arange(len(rows))).all():
        return None
    means = donors == MEAN
    read = set(np.unique(donors[donors >= 0]).tolist())
    if means.any():
        read |= set(np.flatnonzero((ids[:, means] >= 0).any(1)).tolist())
    models = sorted(read | {own})
    renumbered = np.full(len(ids), ZERO, np.int16)
    renumbered[models] = np.arange(len(models))
    return RowTable(
        tuple(models),
        np.where(donors >= 0, renumbered[np.maximum(donors, 0)], donors).astype(np.int16),
        rows.astype(np.int32),
        ids[models] if means.any() else None,
        padding,
    )
