"""The general fuse in float64, from the formulas of TIES, task arithmetic and DARE, given which elements take part.

As support/oracles/sce.py it shares nothing with the package; the one rounding is the output's.
Sources: arXiv 2306.01708, 2212.04089, 2311.03099.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def elected_sign(elect: str, d: Sequence[torch.Tensor], w: Sequence[float]) -> torch.Tensor:
    """+1 or -1 for every element; with no election 0, which every sign agrees with."""
    if elect == "none":
        return torch.zeros_like(d[0])
    votes = torch.stack([x if elect == "sum" else a * x for a, x in zip(w, d, strict=True)])
    s = (votes.sign() if elect == "count" else votes).sum(dim=0)
    return torch.where(s >= 0, 1.0, -1.0).double()


def merge(
    b: torch.Tensor,
    d: Sequence[torch.Tensor],
    w: Sequence[float],
    elect: str,
    *,
    shares: Sequence[float] | None = None,
    alone: Sequence[float] | None = None,
    divisor: float | None = None,
    floor: float = 0.0,
    scale: float = 1.0,
    base_scale: float = 1.0,
) -> torch.Tensor:
    """The merge of float64 `d`, zero where an element does not take part, into the float64 base `b`; not rounded."""
    sign = elected_sign(elect, d, w)
    num, den, survivors = (torch.zeros_like(b) for _ in range(3))
    factor = torch.ones_like(b)
    for a, share, one, x in zip(w, shares or w, alone or [1.0] * len(w), d, strict=True):
        vote = x.sign() if elect == "sum" else (a * x).sign()
        survives = (vote != 0) & ((vote == sign) | (sign == 0))
        num += torch.where(survives, a * x, 0.0)
        den += torch.where(survives, share, 0.0)
        factor = torch.where(survives, one, factor)
        survivors += survives
    num = torch.where(survivors == 1, factor * num, num)
    if divisor is not None:
        den = torch.full_like(den, divisor)
    elif floor:
        den = den.clamp(min=floor)
    return base_scale * b + scale * num / torch.where(den.abs() < 2.0**-27, 1.0, den)


def largest(d: torch.Tensor, k: int) -> torch.Tensor:
    """The mask of the k largest |d|, the first of equals."""
    mask = torch.zeros_like(d, dtype=torch.bool)
    mask[torch.sort(d.abs(), descending=True, stable=True).indices[:k]] = True
    return mask
