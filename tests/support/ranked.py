"""The tests of RANKED selections (DELLA's) use these rows of every kind, and selections that must be refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from fuseo1_kernels.backends.contract import FuseParams, Ranked, Select
from support.tensors import BF16

KEY = 0x243F6A8885A308D3


def normal(n: int, g: torch.Generator) -> torch.Tensor:
    return torch.randn(n, generator=g)


def few_values(n: int, g: torch.Generator) -> torch.Tensor:
    return torch.randint(-3, 4, (n,), generator=g).float()


def one_value(n: int, g: torch.Generator) -> torch.Tensor:
    return torch.ones(n)


def zeros(n: int, g: torch.Generator) -> torch.Tensor:
    return torch.zeros(n)


def many_octaves(n: int, g: torch.Generator) -> torch.Tensor:
    """Most lie so far below the largest that one bin holds them."""
    return torch.randn(n, generator=g).double().mul(12).exp().float()


def nearly_equal(n: int, g: torch.Generator) -> torch.Tensor:
    """Ties among values that one bin holds together."""
    return 1 + torch.randint(0, 5, (n,), generator=g) * 2.0**-20


def differences(n: int, g: torch.Generator) -> torch.Tensor:
    """Of bf16 weights: ties of some hundreds, and values of many bits between them."""
    base = (torch.randn(n, generator=g) * 0.02).to(BF16)
    return (base + torch.randn(n, generator=g) * 1e-3).to(BF16).float() - base.float()


def denormals(n: int, g: torch.Generator) -> torch.Tensor:
    return torch.randint(-50, 50, (n,), generator=g) * 2.0**-149


def not_finite(n: int, g: torch.Generator) -> torch.Tensor:
    x = torch.randn(n, generator=g)
    x[::7], x[3::11], x[5::13] = torch.inf, -torch.inf, torch.nan
    x[::3] = 0
    return x


KINDS = (
    normal,
    few_values,
    one_value,
    zeros,
    many_octaves,
    nearly_equal,
    differences,
    denormals,
    not_finite,
)


def made(
    kind: Callable[[int, torch.Generator], torch.Tensor], row: int, rows: int
) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(row)
    return [torch.zeros(row * rows), *(kind(row * rows, g) for _ in range(2))]


def selects(row: int) -> tuple[Ranked, Ranked]:
    return Ranked(KEY, 0.4, 0.2, row), Ranked(KEY + 1, 0.1, 0.75, row)


def params_of(selects: tuple[Select, ...]) -> FuseParams:
    """Adds up what is selected, each target at a place of its own."""
    weights = tuple(1.0 + 0.5 * i for i in range(len(selects)))
    return FuseParams(weights, elect="none", divisor=1.0, selects=selects)


OUTSIDE = {
    "row 0": Ranked(1, 0.4, 0.2, 0),
    "a negative row": Ranked(1, 0.4, 0.2, -256),
    "a chance below 0": Ranked(1, -0.1, 0.2, 256),
    "a chance of 1": Ranked(1, 0.5, 0.5, 256),
    "not a number": Ranked(1, math.nan, 0.2, 256),
    "a falling chance": Ranked(1, 0.5, -0.2, 256),
    "not whole rows": Ranked(1, 0.4, 0.2, 384),
    "a row too long": Ranked(1, 0.4, 0.2, 1 << 32),
}
