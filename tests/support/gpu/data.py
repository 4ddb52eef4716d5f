"""Tensors that the GPU's kernels are tested on: functions of a size, a number of targets and a generator."""

from __future__ import annotations

from collections.abc import Callable

import torch


def tuned(n: int, targets: int, g: torch.Generator, rms: float = 1e-3) -> list[torch.Tensor]:
    base = torch.randn(n, generator=g) * 0.02
    return [base, *(base + torch.randn(n, generator=g) * rms * (i + 1) for i in range(targets))]


def lightly_tuned(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    return tuned(n, targets, g, 1e-4)


def tied(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    return [
        torch.zeros(n),
        *(torch.round(torch.randn(n, generator=g) * 2) / 4 for _ in range(targets)),
    ]


def two_values(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    drawn = [(torch.rand(n, generator=g) < 0.5).float() * (i + 1) for i in range(targets)]
    return [torch.zeros(n), *drawn]


def constant(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    return [torch.zeros(n), *(torch.full((n,), i + 1.0) for i in range(targets))]


def halves(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    """Two scores: that of the one half is larger."""
    larger = torch.randperm(n, generator=g) < n // 2
    return [torch.zeros(n), *(torch.where(larger, 2.0, 1.0) * (i + 1) for i in range(targets))]


def alike(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    return [torch.randn(n, generator=g)] * (targets + 1)


def nearly_alike(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    """Variances that are small differences of large sums."""
    common = torch.randn(n, generator=g)
    return [
        torch.zeros(n),
        *(common * (1 + torch.randn(n, generator=g) * 2.0**-21) for _ in range(targets)),
    ]


def denormal(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    return [torch.randn(n, generator=g) * 1e-41 for _ in range(targets + 1)]


def tiny_scores(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    """Variances around the smallest fp32, where dividing by a reciprocal would be wrong."""
    return [
        torch.zeros(n),
        *(torch.randn(n, generator=g) * 10.0 ** (-18 - i % 6) for i in range(targets)),
    ]


def outlier(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    tensors = tuned(n, targets, g)
    tensors[1][n // 2] = 6e4
    return tensors


def ascending(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    base = torch.zeros(n)
    steps = torch.sort(torch.randn(n, generator=g)).values * 1e-3
    return [base, *(steps * (i + 1) for i in range(targets))]


def nonfinite(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    tensors = tuned(n, targets, g)
    tensors[-1][:: max(1, n // 7)] = float("nan")
    tensors[1][n // 2] = float("inf")
    tensors[0][n // 3] = float("-inf")
    return tensors


def overflowing(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    drawn = [torch.randn(n, generator=g) * 2e38 for _ in range(targets)]
    return [torch.full((n,), -2e38), *drawn]


def huge(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    """Squares overflow fp32."""
    return [torch.zeros(n), *(torch.randn(n, generator=g) * 1e25 for _ in range(targets))]


KINDS: list[Callable[[int, int, torch.Generator], list[torch.Tensor]]] = [
    tuned,
    lightly_tuned,
    tied,
    two_values,
    constant,
    alike,
    nearly_alike,
    denormal,
    tiny_scores,
    outlier,
    ascending,
    nonfinite,
    overflowing,
    huge,
]
