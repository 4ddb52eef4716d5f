"""Models whose scores are hard to select among."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import torch

from fuseo1_kernels import survey
from fuseo1_kernels.backends.contract import FuseParams
from fuseo1_kernels.backends.results import SceResult
from support.tensors import FP32

N = 70_001  # more than a segment, sampled, odd
Pattern = Callable[[torch.Generator], list[torch.Tensor]]


def constant(g: torch.Generator) -> list[torch.Tensor]:
    """Every score is equal."""
    return [torch.full((N,), x) for x in (0.0, 0.25, 0.5, 0.125)]


def two_values(g: torch.Generator) -> list[torch.Tensor]:
    high = torch.rand(N, generator=g) < 0.3
    return [torch.zeros(N), torch.where(high, 2.0, 1.0), torch.zeros(N), torch.zeros(N)]


def few_values(g: torch.Generator) -> list[torch.Tensor]:
    """Ties wherever the cut falls, zero scores among them."""
    return [torch.randint(-3, 4, (N,), generator=g).float() for _ in range(4)]


def denormal(g: torch.Generator) -> list[torch.Tensor]:
    """Task vectors of fp32's smallest numbers: their squares are 0, their differences must not be."""
    return [torch.randint(-9, 10, (N,), generator=g).float() * 2.0**-149 for _ in range(4)]


def denormal_scores(g: torch.Generator) -> list[torch.Tensor]:
    """Squares that are denormal fp32 numbers."""
    return [torch.randint(-99, 100, (N,), generator=g).float() * 2.0**-75 for _ in range(4)]


def outlier(g: torch.Generator) -> list[torch.Tensor]:
    """One square beyond fp32."""
    tensors = [torch.randn(N, generator=g) * 1e-2 for _ in range(4)]
    tensors[2][N // 2] = 1e30
    return tensors


def squares_overflow(g: torch.Generator) -> list[torch.Tensor]:
    """Scores that are infinite, and so equal, beside ordinary ones."""
    tensors = [torch.randn(N, generator=g) for _ in range(4)]
    for t in tensors[1:]:
        t[torch.rand(N, generator=g) < 0.2] *= 1e20
    return tensors


def opposites(g: torch.Generator) -> list[torch.Tensor]:
    """Sums that are finite, of numbers near fp32's end; the deviations from the mean overflow."""
    tensors = [torch.zeros(N), *(torch.randn(N, generator=g) for _ in range(3))]
    tensors[1][::7] = 3.4e38
    tensors[2][::7] = -3.4e38
    tensors[3][::14] = -3.4e38
    return tensors


def ascending(g: torch.Generator) -> list[torch.Tensor]:
    ramp = torch.arange(N).float() / N
    return [torch.zeros(N), ramp, -ramp, torch.zeros(N)]


def descending(g: torch.Generator) -> list[torch.Tensor]:
    return [t.flip(0) for t in ascending(g)]


def all_zero(g: torch.Generator) -> list[torch.Tensor]:
    return [torch.zeros(N) for _ in range(4)]


def identical(g: torch.Generator) -> list[torch.Tensor]:
    base, tuned = (torch.randn(N, generator=g).bfloat16().float() for _ in range(2))
    return [base, tuned, tuned.clone(), tuned.clone()]


def sparse(g: torch.Generator) -> list[torch.Tensor]:
    """A light fine-tune in bf16: most elements did not move."""
    base = torch.randn(N, generator=g)
    changed = [torch.where(torch.rand(N, generator=g) < 0.004, 1.0, 0.0) for _ in range(3)]
    return [base, *(base + c * torch.randn(N, generator=g) for c in changed)]


def one_nonzero(g: torch.Generator) -> list[torch.Tensor]:
    tensors = all_zero(g)
    tensors[1][N - 1] = 0.5
    return tensors


def nonfinite(g: torch.Generator) -> list[torch.Tensor]:
    """NaN and infinity in every model, two infinities that meet, and differences that overflow."""
    tensors = [torch.randn(N, generator=g) for _ in range(4)]
    for place, (t, value) in enumerate(
        itertools.product(tensors, (torch.nan, torch.inf, -torch.inf))
    ):
        t[place * 977 :: 9973] = value
    for t in tensors[:2]:
        t[5] = torch.inf
    tensors[0][6], tensors[1][6] = -3e38, 3e38
    return tensors


PATTERNS: tuple[Pattern, ...] = (
    constant,
    two_values,
    few_values,
    denormal,
    denormal_scores,
    outlier,
    squares_overflow,
    opposites,
    ascending,
    descending,
    all_zero,
    identical,
    sparse,
    one_nonzero,
    nonfinite,
)


@cache
def pattern(make: Pattern) -> list[torch.Tensor]:
    return make(torch.Generator().manual_seed(0))


@cache
def pattern_survey(make: Pattern, topk: float) -> SceResult:
    base, *targets = pattern(make)
    return survey(base, targets, select_topk=topk, backend="reference")


def params_for(result: SceResult, masked: bool) -> FuseParams:
    """Weights that are no round numbers, and what the survey selected."""
    weights = tuple(
        torch.tensor([0.3 / (i + 1) for i in range(len(result.energy))], dtype=FP32).tolist()
    )
    floor = float(torch.tensor(1e-6, dtype=FP32)) if masked else 0.0
    return FuseParams(weights, floor, masked, result.threshold, result.tie_limit)
