"""Reads a tensor with an adapter added to it: pieces of W, and the rows of L that belong to them; R stays in memory."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from ...backends.arrays import BY_NAME, Array, Buffer, Numbers
from ...backends.contract import FoldParams
from ...checkpoint.header import TensorInfo
from ...checkpoint.source import read_all
from ...plan.folded import Folded
from ...plan.inputs import STORED
from .tools import Tools

_FP32 = BY_NAME["float32"]


class FoldReader:
    """See Reader."""

    def __init__(self, x: Folded, tools: Tools, stack: ExitStack) -> None:
        """Read R, and compute DoRA's factors; `stack` closes the files. Raises MergeError."""
        self._x, self._folder = x, tools.backend.folder
        self._threads, self._check_stop = tools.threads, tools.check_stop
        source = x.weights.source
        self._fds = {
            info: stack.enter_context(source.place(info))
            for info in (x.weights.info, *x.fold.infos)
        }
        rows = x.piece // max(x.columns, 1) + 2
        self._raw = Buffer(4 * max(x.piece, rows * x.fold.rank, 1))
        self._left = Buffer(4 * rows * x.fold.rank)
        self._params = FoldParams(
            columns=x.columns,
            rank=x.fold.rank,
            left=self._left.array(_FP32, rows * x.fold.rank),
            right=self._read_right(),
            scale=x.fold.scale,
            by_row=not x.fold.transposed,
        )
        if x.fold.magnitude is not None:
            self._params = replace(self._params, factors=self._factors(x.fold.magnitude))

    def read(self, start: int, out: Array) -> None:
        """See Reader."""
        for at, part in out.pieces(self._x.piece):
            self._check_stop()
            params = self._at(start + at, part.numel)
            weights = self._read_weights(start + at, part)
            self._folder.fold(params, weights, start + at, part, self._threads())

    def _at(self, start: int, count: int) -> FoldParams:
        """Return the parameters for elements [start, start + count): with L and factors from their first row on."""
        columns = max(self._x.columns, 1)
        first, end = start // columns, -(-(start + count) // columns)
        params = replace(self._params, left=self._read_left(first, end - first))
        if params.factors is None or not params.by_row:
            return params
        return replace(params, factors=params.factors.part(first, end - first))

    def _read_weights(self, start: int, out: Array) -> Array:
        """Read as many elements as `out` has: into it, if they are fp32."""
        dtype = self._x.weights.dtype
        to = out if dtype == _FP32 else self._raw.array(dtype, out.numel)
        self._read(self._x.weights.info, start, to)
        return to

    def _read_left(self, first: int, rows: int) -> Array:
        """Read rows of L, widened to fp32."""
        info, rank = self._x.fold.left, self._x.fold.rank
        wide = self._left.array(_FP32, rows * rank)
        if info is None:
            wide.view.cast("f")[0] = 1.0
            return wide
        raw = self._raw.array(STORED[info.dtype], rows * rank)
        if not self._x.fold.transposed:
            self._read(info, first * rank, raw)
            self._folder.widen(raw, rows, rank, wide, transposed=False)
            return wide
        for k in range(rank):
            self._read(info, k * self._x.rows + first, raw.part(k * rows, rows))
        self._folder.widen(raw, rank, rows, wide, transposed=True)
        return wide

    def _read_right(self) -> Array:
        """Read R, widened to fp32."""
        info, rank, columns = self._x.fold.right, self._x.fold.rank, self._x.columns
        dtype = STORED[info.dtype]
        raw = Buffer(rank * columns * dtype.size).array(dtype, rank * columns)
        wide = Buffer(rank * columns * 4).array(_FP32, rank * columns)
        self._read(info, 0, raw)
        if self._x.fold.transposed:
            self._folder.widen(raw, columns, rank, wide, transposed=True)
        else:
            self._folder.widen(raw, rank, columns, wide, transposed=False)
        return wide

    def _factors(self, info: TensorInfo) -> Numbers:
        """Return DoRA's factors: the magnitudes over the norms of the folded rows or columns."""
        x = self._x
        memory = Buffer(8 * info.numel)
        squares = Numbers(memory.address, info.numel, memory)
        whole = Buffer(4 * x.piece)
        for start in range(0, x.rows * x.columns, x.piece):
            self._check_stop()
            count = min(x.piece, x.rows * x.columns - start)
            params = self._at(start, count)
            weights = self._read_weights(start, whole.array(_FP32, count))
            first = start // x.columns
            part = squares.part(first, count // x.columns) if params.by_row else squares
            self._folder.add_squares(params, weights, part, self._threads())
        dtype = STORED[info.dtype]
        magnitudes = Buffer(dtype.size * info.numel).array(dtype, info.numel)
        self._read(info, 0, magnitudes)
        self._folder.finish_factors(magnitudes, squares)
        return squares

    def _read(self, info: TensorInfo, start: int, out: Array) -> None:
        fd, begin = self._fds[info]
        read_all(fd, begin + start * out.dtype.size, info, out.view)
