"""Codes of 8 bits times scales: every code, ragged blocks, any range, on every instruction set and in torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuseo1_kernels.backends import _cpu
from fuseo1_kernels.backends.arrays import BY_NAME, Array, Buffer
from fuseo1_kernels.backends.contract import DecodeParams
from fuseo1_kernels.backends.cpu import CpuBackend
from fuseo1_kernels.backends.reference.backend import ReferenceBackend
from support.tensors import assert_same_bits

FP8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
FP32 = BY_NAME["float32"]


def in_buffer(tensor: torch.Tensor) -> Buffer:
    raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    buffer = Buffer(len(raw))
    buffer.view[: len(raw)] = raw
    return buffer


def run(
    backend: CpuBackend | ReferenceBackend,
    code: str,
    codes: torch.Tensor,
    scales: torch.Tensor,
    block: tuple[int, int],
    start: int,
    count: int,
    threads: int = 1,
) -> torch.Tensor:
    out = torch.empty(count)
    held = in_buffer(scales.float())
    params = DecodeParams(code, codes.shape[-1], block, held.array(FP32, scales.numel()))
    backend.decode(
        params,
        in_buffer(codes.flatten()[start : start + count]),
        start,
        Array(out.data_ptr(), FP32, count, out),
        threads,
    )
    return out


@pytest.fixture(params=_cpu.available_isas())
def native(request: pytest.FixtureRequest) -> CpuBackend:
    _cpu.use_isa(request.param)
    request.addfinalizer(lambda: _cpu.use_isa(""))
    return CpuBackend()


@pytest.mark.parametrize("code", FP8)
def test_every_code(code: str, native: CpuBackend) -> None:
    """Torch decodes them to the same numbers; all are exact, and NaN stays NaN."""
    codes = torch.arange(256, dtype=torch.uint8).view(1, 256).view(FP8[code])
    expected = codes.float().flatten()
    found = run(native, code, codes, torch.ones(1, 1), (1, 256), 0, 256)
    assert torch.equal(found.isnan(), expected.isnan()) and int(expected.isnan().sum()) in (2, 6)
    kept = ~expected.isnan()
    assert_same_bits(found[kept], expected[kept], code)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], int, int]:
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    block = draw(st.integers(1, 45)), draw(st.integers(1, 80))
    start = draw(st.integers(0, rows * columns - 1))
    return (rows, columns), block, start, draw(st.integers(1, rows * columns - start))


@given(ranges(), st.sampled_from(list(FP8)), st.integers(1, 3), st.integers(0, 2**31))
def test_any_range_of_any_blocks(
    drawn: tuple[tuple[int, int], tuple[int, int], int, int], code: str, threads: int, seed: int
) -> None:
    """Against products in fp64, rounded once."""
    shape, block, start, count = drawn
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 120, shape, generator=g, dtype=torch.uint8).view(FP8[code])
    blocks = [-(-n // b) for n, b in zip(shape, block, strict=True)]
    scales = torch.randn(blocks, generator=g).abs() + 1e-6
    wide = scales.double().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    expected = (codes.float().double() * wide[: shape[0], : shape[1]]).float()
    expected = expected.flatten()[start : start + count]
    for backend in (CpuBackend(), ReferenceBackend()):
        found = run(backend, code, codes, scales, block, start, count, threads)
        assert_same_bits(found, expected, backend.name)
