"""Tensors for the tests of the ops, and how they are compared: by their bits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pytest
import torch

from fuseo1_kernels.backends import _cpu
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import SurveyResult

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = (BF16, FP16, FP32)
ISAS = ("baseline", "avx2", "avx512")
#: Parameters of the fixtures `cpu` and `backend`.
CPUS = tuple(f"cpu-{isa}" for isa in ISAS)
BACKENDS = ("reference", *CPUS)
QUIET_NAN = {BF16: 0x7FC0, FP16: 0x7E00, FP32: 0x7FC00000}

#: Shapes at and around the edges of vectors, blocks of 256 and segments of 65,536 elements.
UGLY_SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (0,),
    (3, 0, 5),
    *((n,) for n in (1, 15, 16, 17, 255, 256, 257, 4095, 4097, 65535, 65536, 65537)),
    (7, 11, 13),
)
SHAPE_IDS = ["x".join(map(str, s)) or "0d" for s in UGLY_SHAPES]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.dtype == FP32 else torch.int16)


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor, what: object = "") -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, what
    different = (bits(actual) != bits(expected)).flatten()
    if different.any():
        first = int(different.nonzero()[0])
        raise AssertionError(
            f"{what}: {int(different.sum())} of {different.numel()} elements differ, first at {first}: "
            f"{actual.flatten()[first].item()!r}, expected {expected.flatten()[first].item()!r}"
        )


def learned(result: SurveyResult) -> dict[str, Any]:
    """Return what a survey learned, without the number of its passes."""
    fields = asdict(result.lasting)
    del fields["passes"]
    return fields


def siblings(
    shape: int | Sequence[int],
    targets: int = 3,
    dtypes: torch.dtype | Sequence[torch.dtype] = BF16,
    *,
    rms: float = 1e-3,
    seed: int = 0,
    growing: bool = True,
) -> list[torch.Tensor]:
    """A base like a trained weight and light fine-tunes of it; dtypes are dealt round, the base's first.

    TensorSpec i's task vector has an rms of i * `rms`, or of `rms` alike if not `growing`.
    """
    g = torch.Generator().manual_seed(seed)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    dealt = itertools.cycle([dtypes] if isinstance(dtypes, torch.dtype) else dtypes)
    base = torch.randn(shape, generator=g) * 0.02
    tuned = [
        base + torch.randn(shape, generator=g) * rms * (i + 1 if growing else 1)
        for i in range(targets)
    ]
    return [t.to(dtype) for t, dtype in zip([base, *tuned], dealt, strict=False)]


def require_isa(isa: str) -> None:
    """Skip the test where the kernels for `isa` do not run."""
    if isa not in _cpu.available_isas():
        pytest.skip(f"this machine or build has no {isa} kernels")


@contextmanager
def instruction_set(isa: str) -> Iterator[None]:
    """Run the cpu backend's kernels for `isa`."""
    load_backend("cpu")  # which takes FUSEO1_ISA: not to be done in between
    before = _cpu.isa()
    _cpu.use_isa(isa)
    try:
        yield
    finally:
        _cpu.use_isa(before)


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """The state a caller of torch.set_flush_denormal is in."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def wild(shape: tuple[int, int], dtype: torch.dtype) -> list[torch.Tensor]:
    """Rows that agree and rows that do not, some of huge numbers, some with what is not finite; ties."""
    base, target = siblings(shape, 1, dtype, seed=shape[0])
    base[1::5] *= 1000
    target[2::5] = base[2::5]
    target[3::5] = (target[3::5] * 64).round() / 64
    base[3::5] = (base[3::5] * 64).round() / 64
    flat = base.view(-1), target.view(-1)
    flat[0][77::3001], flat[1][78::4001] = torch.nan, -torch.inf
    if dtype == FP32:
        flat[0][5::6007], flat[1][5::6007] = -3e38, 3e38
    return [base, target]
