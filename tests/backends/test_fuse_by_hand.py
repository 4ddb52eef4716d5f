"""The general fuse by hand: votes, divisors, what nobody survives, and what is not finite."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from fuseo1_kernels.backends.contract import (
    ALL,
    NONE,
    NOTHING,
    Band,
    Clamp,
    Draw,
    Elect,
    FuseParams,
    Select,
)
from support.fuse_cases import ELECTS, fused
from support.oracles import sce as sce_oracle
from support.tensors import BF16, DTYPES, FP32, QUIET_NAN, assert_same_bits, bits, siblings

THREE, WEIGHTS = [[4.0], [-1.0], [-1.0]], (0.25, 2.0, 1.0)
BY_HAND: dict[str, tuple[list[list[float]], FuseParams, list[float]]] = {
    # of d = 4, -1, -1 the sum is 2; of w d = 1, -2, -1 it is -2; heads say -; all together -2
    "sum": (THREE, FuseParams(WEIGHTS, elect="sum"), [1.0 / 0.25]),
    "weighted": (THREE, FuseParams(WEIGHTS, elect="weighted"), [-3.0 / 3.0]),
    "count": (THREE, FuseParams(WEIGHTS, elect="count"), [-3.0 / 3.0]),
    "none": (THREE, FuseParams(WEIGHTS, elect="none"), [-2.0 / 3.25]),
    **{
        f"a negative weight turns the vote, {elect}": (
            [[2.0], [-2.0]],
            FuseParams((-1.0, 1.0), elect=elect, divisor=4.0),
            [-1.0],
        )
        for elect in ELECTS[1:3]
    },
    "clamped": (
        [[-3.0, -0.25, 0.0, 0.25, 3.0]],
        FuseParams((1.0,), elect="none", divisor=1.0, selects=(Clamp(0.5),)),
        [-0.5, -0.25, 0.0, 0.25, 0.5],
    ),
    "shares divide": (
        [[1.0, 1.0], [2.0, -0.5]],
        FuseParams((1.0, 1.0), elect="weighted", shares=(3.0, 1.0)),
        [0.75, 1 / 3],
    ),
    "alone": (
        [[1.0, 1.0, 0.0], [2.0, 0.0, 4.0]],
        FuseParams((1.0, 0.5), elect="none", shares=(1.0, 1.0), alone=(3.0, 5.0)),
        [1.0, 3.0, 10.0],
    ),
    "shares that cancel divide by one": (
        [[1.0], [1.0]],
        FuseParams((1.0, 2.0), elect="none", shares=(1.0, -1.0)),
        [3.0],
    ),
    # 0.1 + 0.2 - 0.3 is not 0 in fp64, but means it.
    **{
        f"weights that cancel divide by one, {elect}": (
            [[0.01] * 300, [0.01] * 300, [-0.01] * 300],
            FuseParams((0.1, 0.2, -0.3), elect=elect),
            [0.006] * 300,
        )
        for elect in ELECTS[1:]
    },
    # Numbers that fp32 would round to 0.
    **{
        f"numbers are fp64's, {elect}": (
            [[1.0]],
            FuseParams((2.0**-160,), elect=elect, divisor=2.0**-260, shares=(2.0**-61,)),
            [2.0**100],
        )
        for elect in ELECTS
    },
}


@pytest.mark.parametrize(("targets", "params", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_beside_a_base_of_zeros(
    backend: str, targets: list[list[float]], params: FuseParams, expected: list[float]
) -> None:
    tensors = [torch.zeros(len(expected)), *map(torch.tensor, targets)]
    assert_same_bits(fused(backend, tensors, params), torch.tensor(expected))


@pytest.mark.parametrize("elect", ELECTS)
def test_the_base_stays_where_nobody_survives(backend: str, elect: Elect) -> None:
    """Whatever the signs of scale and divisor: of what is not selected, or masked, and of what did not move."""
    drawn: tuple[Select, ...] = (Band(keep=NONE), Draw(7, 0))
    for dtype, scale, divisor in itertools.product(
        DTYPES, (1.0, -2.0, 0.0, -0.0), (None, 1.0, -1.0)
    ):
        base, *targets = siblings(300, 2, dtype)
        base[:100] = -0.0
        params = FuseParams((1.0, -1.0), elect=elect, scale=scale, divisor=divisor)
        for floor in (0.0, -1.0):
            none, still = replace(params, floor_divisor=floor, selects=drawn), [base] * 3
            assert_same_bits(fused(backend, [base, *targets], none, dtype), base)
            assert_same_bits(fused(backend, still, replace(none, selects=()), dtype), base)
        masked = replace(params, masked=True, threshold=NOTHING, floor_divisor=1e-6)
        assert_same_bits(fused(backend, [base, *targets], masked, dtype), base)


def test_a_survivor_of_weight_0_turns_minus_zero(backend: str) -> None:
    tensors = [torch.full((300,), x) for x in (-0.0, -1.0, -0.0)]
    merged = fused(backend, tensors, FuseParams((0.0, 0.0), scale=-1.0))
    assert_same_bits(merged, torch.zeros(300))


def test_no_targets(backend: str) -> None:
    base = siblings(1000, 0, FP32)[0]
    base[:4] = torch.tensor([torch.nan, torch.inf, -0.0, 1e-45])
    assert_same_bits(fused(backend, [base], FuseParams(()))[2:], base[2:])
    for dtype, factor in itertools.product(DTYPES, (0.5, 0.3)):
        scaled = fused(backend, [base], FuseParams((), base_scale=factor), dtype)
        assert int(bits(scaled)[0]) == QUIET_NAN[dtype]
        assert_same_bits(scaled[2:], sce_oracle.rounded(base.double() * factor, dtype)[2:])


@pytest.mark.parametrize("elect", ELECTS)
@pytest.mark.parametrize(
    "select", [None, Band(keep=NONE), Band(drop=ALL), Draw(1, 0), Clamp(0.5)], ids=str
)
def test_what_is_not_finite_shows_whatever_is_selected(
    backend: str, elect: Elect, select: Select
) -> None:
    base, target = torch.zeros(300), torch.ones(300)
    payloads = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32).view(FP32)
    target[2:6], target[6], target[255], base[7] = payloads, torch.inf, -torch.inf, -torch.inf
    params = FuseParams((1.0,), elect=elect, divisor=1.0, selects=(select,))
    for dtype in DTYPES:
        merged = fused(backend, [base, target], params, dtype)
        wrong = (bits(merged) == QUIET_NAN[dtype]).nonzero().flatten()
        assert wrong.tolist() == [2, 3, 4, 5, 6, 7, 255]
        assert merged.isfinite().sum() == 293


def test_what_is_too_small_for_fp32_rounds_to_zero(backend: str) -> None:
    base, target = torch.tensor([0.0, -0.0]), torch.tensor([1e-40, -1e-40])
    params = FuseParams((2.0**-60,), elect="none", divisor=1.0)
    for dtype in DTYPES:
        assert_same_bits(fused(backend, [base, target], params, dtype), base.to(dtype))


def test_decimal_weights_decide_ties_as_fp64_does(backend: str) -> None:
    """Sums of 0.3 d lie on ties of bf16 by the thousand, and fp32's 0.3 is larger than it says."""
    tensors, weights = siblings(200_000, 3, BF16), (0.3, 0.3, 0.3)
    merged = fused(backend, tensors, FuseParams(weights, elect="none", divisor=1.0), BF16)
    exact, *targets = (t.double() for t in tensors)
    delta = torch.zeros_like(exact)
    for x in targets:
        delta += 0.3 * (x - exact)
    assert_same_bits(merged, sce_oracle.rounded(exact + delta, BF16))
