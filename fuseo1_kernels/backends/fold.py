"""The native Folder of the CPU backend."""

from __future__ import annotations

from . import _cpu
from .arrays import Array, Numbers
from .contract import FoldParams


class CpuFolder:
    """W + s * L R by the kernels of csrc/cpu/kernels/fold.cpp."""

    def widen(
        self, matrix: Array, rows: int, columns: int, out: Array, *, transposed: bool
    ) -> None:
        _cpu.fold_widen(_operand(matrix), rows, columns, transposed, out.address)

    def fold(
        self, params: FoldParams, weights: Array, start: int, out: Array, threads: int
    ) -> None:
        by = _by(params) if params.factors else 0
        _cpu.fold(_native(params, by), _operand(weights), start, out.numel, out.address, threads)

    def add_squares(
        self, params: FoldParams, weights: Array, squares: Numbers, threads: int
    ) -> None:
        rows = weights.numel // params.columns
        _cpu.fold_squares(
            _native(params, _by(params)), _operand(weights), rows, squares.address, threads
        )

    def finish_factors(self, magnitudes: Array, squares: Numbers) -> None:
        _cpu.fold_factors(_operand(magnitudes), squares.address, squares.count)


def _operand(array: Array) -> tuple[int, int]:
    return array.address, array.dtype.abi


def _by(params: FoldParams) -> int:
    return _cpu.FACTORS_BY_ROW if params.by_row else _cpu.FACTORS_BY_COLUMN


def _native(params: FoldParams, by: int) -> _cpu.FoldParams:
    return _cpu.FoldParams(
        columns=params.columns,
        rank=params.rank,
        scale=params.scale,
        left=params.left.address,
        right=params.right.address,
        factors=params.factors.address if params.factors else 0,
        factors_by=by,
    )
