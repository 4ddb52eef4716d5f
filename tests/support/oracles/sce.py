"""SCE in float64, from the paper's formula alone (arXiv 2408.07990) and the table of variants in docs/arithmetic.md.

It shares no code with the package and none of its arithmetic: the elements are widened to float64, the scores are
compared without a division, the energies are summed exactly, and the one rounding is the output's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

#: Significant bits and the exponent of the smallest normal number.
_FORMATS = {torch.bfloat16: (8, -126), torch.float16: (11, -14), torch.float32: (24, -126)}


def scores(d: Sequence[torch.Tensor]) -> torch.Tensor:
    """N^2 times the variance of N task vectors: exact in float64 where the d_i have up to 24 bits in common."""
    total = torch.stack(list(d)).sum(dim=0)
    squares = torch.stack([x * x for x in d]).sum(dim=0)
    return (len(d) * squares - total * total).clamp(min=0.0)


def fp32_scores(d: Sequence[torch.Tensor]) -> torch.Tensor:
    """The variance as the contract defines what is compared: fp32, one operation at a time, in this order.

    On bf16 fine-tunes thousands of elements share one exact score, and these roundings break such ties.
    """
    n, total = len(d), d[0].float()
    for x in d[1:]:
        total = total + x.float()
    mean = total / n
    variance = (d[0].float() - mean) ** 2
    for x in d[1:]:
        variance = variance + (x.float() - mean) ** 2
    return variance / n


def top_k(score: torch.Tensor, select_topk: float) -> torch.Tensor:
    """The mask of the floor(select_topk * count_nonzero) largest scores, ties by lowest flat index."""
    if select_topk == 1.0:
        return torch.ones_like(score, dtype=torch.bool)
    k = math.floor(select_topk * int(torch.count_nonzero(score)))
    mask = torch.zeros_like(score, dtype=torch.bool)
    mask[torch.sort(score, descending=True, stable=True).indices[:k]] = True
    return mask


def energies(d: Sequence[torch.Tensor], mask: torch.Tensor) -> list[float]:
    """Sums of squares over the mask, each sum rounded once."""
    return [math.fsum((x[mask] * x[mask]).tolist()) for x in d]


def merge(
    base: torch.Tensor,
    targets: Sequence[torch.Tensor],
    select_topk: float,
    variant: str,
    score: Callable[[Sequence[torch.Tensor]], torch.Tensor] = scores,
) -> torch.Tensor:
    """The merged tensor in float64, of the base's shape, not rounded."""
    b = base.double().flatten()
    d = [t.double().flatten() - b for t in targets]
    mask = top_k(score(d), select_topk)
    return combine(b, d, mask, energies(d, mask), variant).reshape(base.shape)


def combine(
    b: torch.Tensor,
    d: Sequence[torch.Tensor],
    mask: torch.Tensor,
    energy: Sequence[float],
    variant: str,
) -> torch.Tensor:
    """The merge of float64 task vectors `d` into `b`, given the selection and its energies."""
    total = math.fsum(energy)
    if variant == "mergekit":
        d = [torch.where(mask, x, 0.0) for x in d]
        uniform = total / max(b.numel(), 1) < 1e-6
    else:
        uniform = total == 0.0
    weights = [1.0 if uniform else e / total for e in energy]  # 1/N would not be exact
    sign = torch.where(torch.stack(list(d)).sum(dim=0) >= 0.0, 1.0, -1.0)
    num, den = torch.zeros_like(b), torch.zeros_like(b)
    for w, x in zip(weights, d, strict=True):
        survives = torch.sign(x) == sign
        num += torch.where(survives, w * x, 0.0)
        den += torch.where(survives, w, 0.0)
    divisor = den.clamp(min=1e-6) if variant == "mergekit" else torch.where(den == 0.0, 1.0, den)
    return b + num / divisor


def rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x` (float64) rounded once to `dtype`, to nearest even. torch's own conversion rounds to fp32 in between."""
    digits, least = _FORMATS[dtype]
    _, exponent = torch.frexp(x)  # x = m * 2^exponent, 0.5 <= |m| < 1
    shift = digits - exponent.long().clamp(
        min=least + 1
    )  # x * 2^shift: the last digit kept is the unit
    return (torch.round(x * _power_of_two(shift)) * _power_of_two(-shift)).to(dtype)


def _power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    return ((exponent + 1023) << 52).view(torch.float64)
