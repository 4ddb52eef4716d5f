"""Reads tensors whose rows are gathered by token, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

from ...backends.arrays import BY_NAME, Array, Buffer
from ...plan.gathered import PIECE, Gathered
from ...plan.inputs import Input
from ...plan.row_tables import MEAN, ZERO
from .tools import Reader

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FP32 = BY_NAME["float32"]


class GatheredReader:
    """Reads a Gathered input. Every row is found by itself, so elements do not depend on how reads are cut."""

    def __init__(
        self, gathered: Gathered, donors: Sequence[Reader], check_stop: Callable[[], None]
    ) -> None:
        """Sum all rows if some are padding. Raises MergeError.

        Args:
            gathered: what to read.
            donors: readers of its donors.
            check_stop: raises MergeError if the merge must end.
        """
        self._table, self._width = gathered.table, prod(gathered.shape[1:])
        self._count = len(self._table.rows)
        self._donors = [
            _Widening(x, reader, gathered.dtype != x.dtype, self._width)
            for x, reader in zip(gathered.donors, donors, strict=True)
        ]
        self._padding: NDArray[np.float32] | None = None
        if self._table.padding and self._width:
            self._padding = self._mean_of_all(check_stop)

    def read(self, start: int, out: Array) -> None:
        """See Reader."""
        width, end = self._width, start + out.numel
        if start == end:
            return
        for first, after, donor, row in self._runs(start // width, -(-end // width)):
            begin, stop = max(start, first * width), min(end, after * width)
            part = out.part(begin - start, stop - begin)
            if donor >= 0:
                self._donors[donor].read((row - first) * width + begin, part)
            elif donor == ZERO:
                _values(part)[:] = 0
            else:
                self._read_means(first, after, begin, part)

    def _runs(self, first: int, after: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (first, after, donor, row) of rows that follow each other in one place. Padding is like means."""
        import numpy as np

        last = min(after, self._count)
        donors, rows = self._table.donors[first:last], self._table.rows[first:last]
        if len(donors):
            breaks = (donors[1:] != donors[:-1]) | (rows[1:] != rows[:-1] + 1)
            bounds = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(donors)]
            for one, two in pairwise(bounds):
                yield first + one, first + two, int(donors[one]), int(rows[one])
        if after > self._count:
            yield max(first, self._count), after, MEAN, -1

    def _read_means(self, first: int, after: int, begin: int, out: Array) -> None:
        """Fill `out` with elements from flat index `begin` on of the rows [first, after), which are means."""
        values, width = _values(out), self._width
        for index in range(first, after):
            one = max(begin, index * width)
            two = min(begin + out.numel, (index + 1) * width)
            mean = self._mean(index)[one - index * width : two - index * width]
            values[one - begin : two - begin] = mean

    def _mean(self, index: int) -> NDArray[np.float32]:
        """Return row `index`: the mean of those of the donors that have it, in their order, or of all rows."""
        import numpy as np

        if index >= self._count:
            assert self._padding is not None
            return self._padding
        assert self._table.members is not None
        total = np.zeros(self._width)
        rows = self._table.members[:, index]
        with np.errstate(
            invalid="ignore"
        ):  # infinities may cancel; what a NaN means is said elsewhere
            for donor, row in zip(self._donors, rows.tolist(), strict=True):
                if row >= 0:
                    total += donor.widened(row * self._width, self._width)
        return (total / np.count_nonzero(rows >= 0)).astype(np.float32)

    def _mean_of_all(self, check_stop: Callable[[], None]) -> NDArray[np.float32]:
        """Return the mean of all rows before the padding, summed in the order of ids."""
        import numpy as np

        total = np.zeros(self._width)
        step = max(1, PIECE // (self._width * 4))
        buffer = Buffer(step * self._width * 4)
        for first in range(0, self._count, step):
            check_stop()
            rows = min(step, self._count - first)
            part = buffer.array(_FP32, rows * self._width)
            self.read(first * self._width, part)
            with np.errstate(invalid="ignore"):  # see _mean
                for row in _values(part).astype(np.float64).reshape(rows, self._width):
                    total += row
        return (total / self._count).astype(np.float32)


class _Widening:
    """Reads a donor in the gathered tensor's dtype: its own, or fp32, which holds every element exactly."""

    def __init__(self, x: Input, reader: Reader, widens: bool, width: int) -> None:
        self._reader, self._dtype, self._widens = reader, x.dtype, widens
        self._step = max(PIECE // 4, width)
        self._piece = Buffer(self._step * x.dtype.size)

    def read(self, start: int, out: Array) -> None:
        if not self._widens:
            self._reader.read(start, out)
            return
        for at, part in out.pieces(self._step):
            _values(part)[:] = self.widened(start + at, part.numel)

    def widened(self, start: int, count: int) -> NDArray[np.float32]:
        """Return `count` elements, at most a piece or a row, from flat index `start` on."""
        import numpy as np

        part = self._piece.array(self._dtype, count)
        self._reader.read(start, part)
        found: Any = _values(part)
        if self._dtype.name == "bfloat16":
            found = (found.astype(np.uint32) << 16).view(np.float32)
        values: NDArray[np.float32] = found.astype(np.float32, copy=False)
        return values


def _values(array: Array) -> NDArray[Any]:
    """Return the elements, writable; of bfloat16, which numpy has not, the bits."""
    import numpy as np

    return np.frombuffer(array.view, {"bfloat16": "uint16"}.get(array.dtype.name, array.dtype.name))
