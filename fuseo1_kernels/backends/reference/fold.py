"""W + s * L R in torch, in fp64: csrc/include/fuseo1/fold.h states the formulas."""

from __future__ import annotations

import ctypes
import math

import torch

from ..arrays import Array, Numbers
from ..contract import FoldParams
from .arrays import as_tensor
from .divergences import sum_in_lanes


class ReferenceFolder:
    """The reference backend's Folder."""

    def widen(
        self, matrix: Array, rows: int, columns: int, out: Array, *, transposed: bool
    ) -> None:
        wide = as_tensor(matrix).float().view(rows, columns)
        as_tensor(out).copy_((wide.T if transposed else wide).reshape(-1))

    def fold(
        self, params: FoldParams, weights: Array, start: int, out: Array, threads: int
    ) -> None:
        columns = params.columns
        before = start % columns
        rows = -(-(before + out.numel) // columns)
        padded = torch.zeros(rows * columns)
        padded[before : before + out.numel] = as_tensor(weights).float()
        v = _folded(params, padded, rows)
        if params.factors is not None:
            factors = _numbers(params.factors)
            v = v * (factors[:rows, None] if params.by_row else factors)
        as_tensor(out).copy_(v.view(-1)[before : before + out.numel].float())

    def add_squares(
        self, params: FoldParams, weights: Array, squares: Numbers, threads: int
    ) -> None:
        rows = weights.numel // params.columns
        v = _folded(params, as_tensor(weights).float(), rows)
        found = _numbers(squares)
        if params.by_row:
            found[:rows] = sum_in_lanes(v * v)
            return
        for row in v * v:
            found += row

    def finish_factors(self, magnitudes: Array, squares: Numbers) -> None:
        found = _numbers(squares)
        # torch's sqrt may be that of a library, which is not correctly rounded.
        norms = torch.tensor([math.sqrt(q) for q in found.tolist()], dtype=torch.float64)
        found.copy_(as_tensor(magnitudes).double() / norms)


def _folded(params: FoldParams, weights: torch.Tensor, rows: int) -> torch.Tensor:
    """Return v of whole rows, in fp64."""
    left = as_tensor(params.left).double().view(-1, params.rank)[:rows]
    right = as_tensor(params.right).double().view(params.rank, params.columns)
    sums = torch.zeros(rows, params.columns, dtype=torch.float64)
    for k in range(params.rank):
        sums = sums + left[:, k, None] * right[k]
    return weights.double().view(rows, params.columns) + params.scale * sums


def _numbers(numbers: Numbers) -> torch.Tensor:
    memory = (ctypes.c_char * (numbers.count * 8)).from_address(numbers.address)
    return torch.frombuffer(memory, dtype=torch.float64)
