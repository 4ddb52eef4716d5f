"""Tensors whose merged elements lie next to ties of the output's dtype, and whose elections almost cancel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from support.tensors import BF16, FP32


def near_ties(
    numel: int, weights: Sequence[float], dtype: torch.dtype, seed: int
) -> list[torch.Tensor]:
    """Base and targets, fp32: a third of the elements' means lie within 2^-12 to 2^-30 of a tie of `dtype`.

    In another third the weighted votes cancel but for as little. The others have denormals, huge ratios and zeros.
    """
    g = np.random.default_rng(seed)
    targets = len(weights)
    base = g.standard_normal(numel) * 2.0 ** g.integers(-3, 4, numel)
    tie = _ties(base, dtype)
    tiny = 2.0 ** g.integers(-30, -12, numel) * g.choice([-1.0, 1.0], numel)
    d = g.standard_normal((targets, numel)) * np.abs(base) * 2.0 ** g.integers(-12, -2, numel)
    kind = g.integers(0, 3, numel)
    one_sign = g.integers(0, 2, numel) == 0
    d = np.where(one_sign, np.abs(d) * np.sign(tie - base + (tie == base)), d)
    total = np.abs(np.asarray(weights))
    w = np.asarray(weights)[:, None]
    # The last target brings the weighted mean to the tie, or the votes to zero.
    others = (w[:-1] * d[:-1]).sum(axis=0)
    wanted = (tie - base) * total.sum() * (1 + tiny)
    with np.errstate(over="ignore"):
        last = np.where(kind == 0, (wanted - others) / weights[-1], d[-1])
        d[-1] = np.where(kind == 1, -others / weights[-1] * (1 + tiny * 2.0**-8), last)
    odd = kind == 2
    d[:, odd] *= 2.0 ** g.integers(-140, 20, (targets, int(odd.sum())))
    d = np.where(odd & (g.integers(0, 4, (targets, numel)) == 0), 0.0, d)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rounded_base = base.astype(np.float32)
        inputs = [rounded_base, *((rounded_base + x).astype(np.float32) for x in d)]
    return [torch.from_numpy(x.copy()) for x in inputs]


def _ties(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """For each x the middle between the two numbers of `dtype` around it; x itself for fp32."""
    if dtype == FP32:
        return x
    near = torch.from_numpy(x).to(dtype)
    step = torch.ones_like(near, dtype=torch.int16)
    above = (near.view(torch.int16) + step).view(dtype)
    middle: np.ndarray = ((near.double() + above.double()) / 2).numpy()
    return middle


def in_bf16(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same as bf16: coarse, so that many means are exact ties."""
    return [t.to(BF16) for t in tensors]
