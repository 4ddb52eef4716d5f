"""W + s * L R: every instruction set has the reference's bits, in any range of elements."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fuseo1_kernels.backends.arrays import BY_NAME, Array, Numbers
from fuseo1_kernels.backends.contract import FoldParams
from fuseo1_kernels.backends.interface import Folder
from fuseo1_kernels.backends.registry import load_backend
from support.tensors import DTYPES, ISAS, denormals_flushed, instruction_set, require_isa

#: Rows, columns, rank: around the edges of vectors and tiles, and more than one segment of 65,536 elements.
SHAPES = [(1, 1, 1), (5, 7, 3), (9, 33, 4), (66, 1031, 5), (4, 16, 40)]


def array(tensor: torch.Tensor) -> Array:
    return Array(tensor.data_ptr(), BY_NAME[str(tensor.dtype)[6:]], tensor.numel(), tensor)


def numbers(tensor: torch.Tensor) -> Numbers:
    return Numbers(tensor.data_ptr(), tensor.numel(), tensor)


class Case:
    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, by_row: bool) -> None:
        self.rows, self.columns, self.rank = shape
        self.by_row, self.scale = by_row, 16 / 7
        g = torch.Generator().manual_seed(self.columns)
        self.weights = torch.randn(self.rows * self.columns, generator=g).to(dtype)
        self.left = torch.randn(self.rows, self.rank, generator=g)
        self.right = torch.randn(self.rank, self.columns, generator=g) * 2.0**-140
        self.right[: self.rank // 2] = torch.randn(self.rank // 2, self.columns, generator=g)
        of = self.rows if by_row else self.columns
        self.magnitudes = torch.rand(of, generator=g).to(dtype)

    def params(self, row: int, factors: torch.Tensor | None) -> FoldParams:
        left = self.left[row:].contiguous()
        if factors is not None and self.by_row:
            factors = factors[row:].contiguous()
        return FoldParams(
            self.columns,
            self.rank,
            array(left),
            array(self.right),
            self.scale,
            self.by_row,
            None if factors is None else numbers(factors),
        )

    def factors(self, folder: Folder, threads: int = 2) -> torch.Tensor:
        """DoRA's factors, from the rows in two pieces."""
        found = torch.zeros(self.magnitudes.numel(), dtype=torch.float64)
        half = -(-self.rows // 2)
        for first, end in [(0, half), (half, self.rows)][: self.rows]:
            part = self.weights[first * self.columns : end * self.columns]
            to = found[first:end] if self.by_row else found
            folder.add_squares(self.params(first, None), array(part), numbers(to), threads)
        folder.finish_factors(array(self.magnitudes), numbers(found))
        return found

    def fold(
        self, folder: Folder, factors: torch.Tensor | None, start: int, end: int, threads: int = 2
    ) -> torch.Tensor:
        out = torch.empty(end - start)
        params = self.params(start // self.columns, factors)
        folder.fold(params, array(self.weights[start:end]), start, array(out), threads)
        return out

    def by_numpy(self, factors: torch.Tensor | None) -> np.ndarray:
        """The formula in Python's own numbers, an element at a time."""
        left, right = self.left.double().numpy(), self.right.double().numpy()
        found = np.zeros((self.rows, self.columns))
        for k in range(self.rank):
            found = found + left[:, k, None] * right[k]
        found = self.weights.double().numpy().reshape(found.shape) + self.scale * found
        if factors is not None:
            found = found * (factors.numpy()[:, None] if self.by_row else factors.numpy())
        return found.astype(np.float32).reshape(-1)


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_backend_has_the_same_bits(
    dtype: torch.dtype, shape: tuple[int, int, int], by_row: bool
) -> None:
    case = Case(shape, dtype, by_row)
    reference, cpu = load_backend("reference").folder, load_backend("cpu").folder
    factors = case.factors(reference)
    whole = case.rows * case.columns
    for of in (None, factors):
        expected = case.fold(reference, of, 0, whole)
        assert (expected.numpy() == case.by_numpy(of)).all()
        for isa in ISAS:
            with instruction_set(isa), denormals_flushed():
                require_isa(isa)
                assert torch.equal(case.factors(cpu), factors), isa
                assert torch.equal(case.fold(cpu, of, 0, whole), expected), isa
                for start, end in ((whole // 3, whole), (whole // 5, whole // 5 * 4)):
                    for threads in (1, 3):
                        part = case.fold(cpu, of, start, end, threads)
                        assert torch.equal(part, expected[start:end]), (isa, start, end)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_widening(dtype: torch.dtype, transposed: bool) -> None:
    matrix = torch.randn(7, 131, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = matrix.float().T if transposed else matrix.float()
    for backend in ("reference", "cpu"):
        out = torch.empty(matrix.numel())
        folder = load_backend(backend).folder
        folder.widen(array(matrix.view(-1)), 7, 131, array(out), transposed=transposed)
        assert torch.equal(out, expected.reshape(-1))
