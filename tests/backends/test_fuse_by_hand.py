"""The general fuse by hand: votes, divisors, what nobody survives, and what is not finite."""

from __future__ import annotations

import pytest
import torch

from fuseo1_kernels.backends.contract import (
    NONE,
    Band,
    Clamp,
    Draw,
    Elect,
    FuseParams,
    Select,
)
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.in_memory.ops import as_array, as_arrays
from support.oracles import sce as sce_oracle
from support.tensors import BF16, DTYPES, FP32, QUIET_NAN, assert_same_bits, bits, siblings

ELECTS: tuple[Elect, ...] = ("sum", "weighted", "count", "none")


def fused(
    backend: str, tensors: list[torch.Tensor], params: FuseParams, dtype: torch.dtype = FP32
) -> torch.Tensor:
    out = torch.empty(tensors[0].shape, dtype=dtype)
    inputs = [as_array(t) for t in tensors]
    bad = load_backend(backend).fuse(inputs, params, as_array(out), 0, 2)
    assert bad == int((~torch.isfinite(out)).sum())
    return out


@pytest.mark.parametrize(
    ("elect", "expected"),
    [
        # of d = 4, -1, -1 the sum is 2; of w d = 1, -2, -1 it is -2; heads say -; all together -2
        ("sum", [1.0 / 0.25]),
        ("weighted", [-3.0 / 3.0]),
        ("count", [-3.0 / 3.0]),
        ("none", [-2.0 / 3.25]),
    ],
)
def test_elections(backend: str, elect: Elect, expected: list[float]) -> None:
    tensors = [torch.zeros(1), *(torch.tensor([x]) for x in (4.0, -1.0, -1.0))]
    merged = fused(backend, tensors, FuseParams((0.25, 2.0, 1.0), elect=elect))
    assert_same_bits(merged, torch.tensor(expected))


@pytest.mark.parametrize("elect", ["weighted", "count"])
def test_a_negative_weight_turns_the_vote(backend: str, elect: Elect) -> None:
    tensors = [torch.zeros(1), torch.tensor([2.0]), torch.tensor([-2.0])]
    merged = fused(backend, tensors, FuseParams((-1.0, 1.0), elect=elect, divisor=4.0))
    assert merged.tolist() == [-1.0]


@pytest.mark.parametrize("elect", ELECTS)
@pytest.mark.parametrize("scale", [1.0, -2.0])
def test_the_base_stays_where_nobody_survives(backend: str, elect: Elect, scale: float) -> None:
    selects: tuple[Select, ...] = (Band(keep=NONE), Draw(7, 0))
    params = FuseParams((1.0, 1.0), elect=elect, scale=scale, selects=selects)
    for dtype in DTYPES:
        base, *targets = siblings(1000, 2, dtype)
        base[:500] = -0.0
        assert_same_bits(fused(backend, [base, *targets], params, dtype), base)


def test_no_targets(backend: str) -> None:
    [base] = siblings(1000, 0, BF16)
    base[0], base[1], base[2] = torch.nan, torch.inf, -0.0
    assert_same_bits(fused(backend, [base], FuseParams(()), BF16)[1:], base[1:])
    scaled = fused(backend, [base], FuseParams((), base_scale=0.3), BF16)
    assert int(bits(scaled)[0]) == QUIET_NAN[BF16]
    # The product is rounded to fp32 before it is rounded to bf16: the contract's two operations.
    expected = (base.float() * torch.tensor(0.3)).to(BF16)
    assert_same_bits(scaled[1:], expected[1:])


@pytest.mark.parametrize("elect", ELECTS)
@pytest.mark.parametrize("select", [None, Band(keep=NONE), Draw(1, 0), Clamp(0.5)], ids=str)
def test_what_is_not_finite_shows_whatever_is_selected(
    backend: str, elect: Elect, select: Select
) -> None:
    base, target = torch.zeros(300), torch.ones(300)
    target[5], target[6], base[7] = torch.nan, torch.inf, -torch.inf
    params = FuseParams((1.0,), elect=elect, selects=(select,))
    for dtype in DTYPES:
        merged = fused(backend, [base, target], params, dtype)
        wrong = (bits(merged) == QUIET_NAN[dtype]).nonzero().flatten()
        assert wrong.tolist() == [5, 6, 7]


def test_clamped_differences(backend: str) -> None:
    target = torch.tensor([-3.0, -0.25, 0.0, 0.25, 3.0])
    params = FuseParams((1.0,), elect="none", divisor=1.0, selects=(Clamp(0.5),))
    merged = fused(backend, [torch.zeros(5), target], params)
    assert merged.tolist() == [-0.5, -0.25, 0.0, 0.25, 0.5]


def test_shares_divide(backend: str) -> None:
    tensors = [torch.zeros(2), torch.tensor([1.0, 1.0]), torch.tensor([2.0, -0.5])]
    params = FuseParams((1.0, 1.0), elect="weighted", shares=(3.0, 1.0))
    assert fused(backend, tensors, params).tolist() == [0.75, fp32(1 / 3)]


def test_shares_that_cancel_divide_by_one(backend: str) -> None:
    tensors = [torch.zeros(1), torch.ones(1), torch.ones(1)]
    params = FuseParams((1.0, 2.0), elect="none", shares=(1.0, -1.0))
    assert fused(backend, tensors, params).tolist() == [3.0]


@pytest.mark.parametrize(("elect", "merged"), [("sum", 2.0), ("none", 2.0**100)])
def test_numbers_are_those_of_the_arithmetic(backend: str, elect: Elect, merged: float) -> None:
    """For "sum", a divisor that fp32 rounds to 0 counts as no divisor. The other elections divide in fp64."""
    tensors = as_arrays([torch.zeros(1), torch.ones(1)])
    params = FuseParams((2.0**-60,), elect=elect, divisor=2.0**-160, shares=(2.0**-61,))
    out = torch.empty(1)
    load_backend(backend).fuse(tensors, params, as_array(out), 0, 1)
    assert out.tolist() == [merged]


def test_what_is_too_small_for_fp32_rounds_to_zero(backend: str) -> None:
    base, target = torch.tensor([0.0, -0.0]), torch.tensor([1e-40, -1e-40])
    params = FuseParams((2.0**-60,), elect="none", divisor=1.0)
    for dtype in DTYPES:
        merged = fused(backend, [base, target], params, dtype)
        assert_same_bits(merged, base.to(dtype))


def test_decimal_weights_decide_ties_as_fp64_does(backend: str) -> None:
    """Sums of 0.3 d lie on ties of bf16 by the thousand, and fp32's 0.3 is larger than it says."""
    base, *targets = siblings(200_000, 3, BF16)
    weights = (0.3, 0.3, 0.3)
    exact = base.double()
    merged = fused(backend, [base, *targets], FuseParams(weights, elect="none", divisor=1.0), BF16)
    delta = torch.zeros_like(exact)
    for w, x in zip(weights, targets, strict=True):
        delta += w * (x.double() - exact)
    assert_same_bits(merged, sce_oracle.rounded(exact + delta, BF16))


def fp32(x: float) -> float:
    return float(torch.tensor(x, dtype=FP32))


@pytest.mark.parametrize("elect", ["weighted", "count", "none"])
def test_weights_that_cancel_divide_by_one(backend: str, elect: Elect) -> None:
    """0.1 + 0.2 - 0.3 is not 0 in fp64, but means it."""
    tensors = [torch.zeros(300), *(torch.full((300,), x) for x in (0.01, 0.01, -0.01))]
    weights = (0.1, 0.2, -0.3)
    merged = fused(backend, tensors, FuseParams(weights, elect=elect))
    assert_same_bits(merged, torch.full((300,), 0.006))
