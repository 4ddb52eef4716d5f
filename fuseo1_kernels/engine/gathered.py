"""Reads tensors whose rows are gathered by token, whole rows or parts of them, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..backends.arrays import DType
from ..plan.inputs import Gathered, Stored
from ..plan.row_tables import MEAN, ZERO

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Bytes of rows that are widened, or summed for a mean, at a time; at least one row.
_PIECE = 1 << 18


class GatheredReader:
    """Reads a Gathered tensor. Every row is found by itself, so elements do not depend on how reads are cut."""

    def __init__(self, gathered: Gathered) -> None:
        """Sums all rows if some are padding. Raises CheckpointError for a file that cannot be read."""
        self._gathered, self._table = gathered, gathered.table
        self._width = gathered.width
        self._count = len(self._table.rows)
        self._padding: NDArray[np.float32] | None = None
        if self._table.padding:
            self._padding = self._mean_of_all()

    def read(self, start: int, out: memoryview) -> None:
        """Fill `out` with elements from flat index `start` on, in the tensor's dtype. Raises CheckpointError."""
        if not out.nbytes:
            return
        size, width = self._gathered.dtype.size, self._width
        end = start + out.nbytes // size
        for first, after, donor, row in self._runs(start // width, -(-end // width)):
            begin, stop = max(start, first * width), min(end, after * width)
            part = out[(begin - start) * size : (stop - start) * size]
            if donor >= 0:
                at = (row - first) * width + begin
                _read(self._gathered.stored[donor], at, self._gathered.dtype, part)
            elif donor == ZERO:
                part[:] = bytes(part.nbytes)
            else:
                for index in range(first, after):
                    one, two = max(begin, index * width), min(stop, (index + 1) * width)
                    values = self._mean(index)[one - index * width : two - index * width]
                    part[(one - begin) * size : (two - begin) * size] = values.tobytes()

    def _runs(self, first: int, after: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (first, after, donor, row) of rows that follow each other in one place; padding is like means."""
        import numpy as np

        last = min(after, self._count)
        donors, rows = self._table.donors[first:last], self._table.rows[first:last]
        if len(donors):
            breaks = (donors[1:] != donors[:-1]) | (rows[1:] != rows[:-1] + 1)
            bounds = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(donors)]
            for one, two in zip(bounds, bounds[1:], strict=False):
                yield first + one, first + two, int(donors[one]), int(rows[one])
        if after > self._count:
            yield max(first, self._count), after, MEAN, -1

    def _mean(self, index: int) -> NDArray[np.float32]:
        """Return row `index`: the mean of those of the models that have it, in their order, or of all rows."""
        import numpy as np

        if index >= self._count:
            assert self._padding is not None
            return self._padding
        assert self._table.members is not None
        total = np.zeros(self._width)
        rows = self._table.members[:, index]
        for stored, row in zip(self._gathered.stored, rows.tolist(), strict=True):
            if row >= 0:
                total += _widened(stored, row * self._width, self._width)
        return (total / np.count_nonzero(rows >= 0)).astype(np.float32)

    def _mean_of_all(self) -> NDArray[np.float32]:
        """Return the mean of all rows before the padding, summed in the order of ids."""
        import numpy as np

        total = np.zeros(self._width)
        step = max(1, _PIECE // (self._width * 4))
        buffer = memoryview(bytearray(step * self._width * 4))
        for first in range(0, self._count, step):
            rows = min(step, self._count - first)
            part = buffer[: rows * self._width * 4]
            self.read(first * self._width, part)
            for row in np.frombuffer(part, np.float32).reshape(rows, self._width):
                total += row
        return (total / self._count).astype(np.float32)


def _read(stored: Stored, start: int, dtype: DType, out: memoryview) -> None:
    """Fill `out` with elements of a file from `start` on, widened to `dtype`."""
    if stored.dtype == dtype:
        stored.source.read_into(stored.info, start * dtype.size, out)
        return
    count, step = out.nbytes // dtype.size, _PIECE // dtype.size
    for at in range(0, count, step):
        number = min(step, count - at)
        values = _widened(stored, start + at, number)
        out[at * dtype.size : (at + number) * dtype.size] = values.data.cast("B")


def _widened(stored: Stored, start: int, count: int) -> NDArray[np.float32]:
    """Return elements of a file in fp32, which holds them exactly."""
    import numpy as np

    data = bytearray(count * stored.dtype.size)
    stored.source.read_into(stored.info, start * stored.dtype.size, memoryview(data))
    found: Any
    if stored.dtype.name == "bfloat16":
        found = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        found = np.frombuffer(data, stored.dtype.name).astype(np.float32)
    return found
