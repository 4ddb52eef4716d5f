"""Readers of what an earlier merge of a chain gives. Nothing of it is stored but, for some rules, one tensor."""

from __future__ import annotations

from collections.abc import Callable

from ...backends.arrays import Array, Buffer


class FusedReader:
    """Fuses elements whenever they are read."""

    def __init__(
        self, fuse: Callable[[int, Array], None], buffer: Buffer, numel: int, step: int, most: int
    ) -> None:
        """Read a tensor of `numel` elements by way of `buffer`.

        `fuse(start, out)` fills `out` with elements. It is called with multiples of `step`, for at most `most` elements
        or one step.
        """
        self._fuse, self._buffer, self._numel = fuse, buffer, numel
        self._step, self._most = step, max(most // step * step, step)

    def read(self, start: int, out: Array) -> None:
        """See Reader."""
        size, end = out.dtype.size, start + out.numel
        for begin in range(start // self._step * self._step, end, self._most):
            fused = self._buffer.array(out.dtype, min(self._most, self._numel - begin))
            self._fuse(begin, fused)
            first, last = max(begin, start), min(begin + fused.numel, end)
            out.view[(first - start) * size : (last - start) * size] = fused.view[
                (first - begin) * size : (last - begin) * size
            ]


class WholeReader:
    """Holds a whole tensor: a Destination of its merge first, its reader then."""

    def __init__(self, nbytes: int) -> None:
        """Raises OSError if the memory cannot be had."""
        self._buffer = Buffer(nbytes)

    def write(self, name: str, start: int, view: memoryview) -> None:
        """See Destination."""
        self._buffer.view[start : start + view.nbytes] = view

    def read(self, start: int, out: Array) -> None:
        """See Reader."""
        begin = start * out.dtype.size
        out.view[:] = self._buffer.view[begin : begin + out.nbytes]
