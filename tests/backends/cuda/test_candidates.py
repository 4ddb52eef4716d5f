"""Room for a survey's candidates on a GPU: what the bracket holds of a large tensor fits, where the docs say so."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from support.emulated import load_emulated
from support.gpu.data import tuned
from support.tensors import BF16

pytestmark = pytest.mark.toolchain

# A layer of Qwen2.5-32B; what is drawn in its place.
NUMEL = 5120 * 27_648
DRAWN = 1 << 20

# csrc/cuda/survey_sce.cu, threshold.cuh
SAMPLED = 1 << 20
BLOCK, STRETCH, WORD = 256, 65_536, 8


@cache
def scores(targets: int, rms: float, spread: bool) -> torch.Tensor:
    """Scores that are not 0, as bits, in descending order. `spread`: target i moved i times as far as the first."""
    g = torch.Generator().manual_seed(targets)
    base, *moved = tuned(DRAWN, targets, g, rms)
    if not spread:
        moved = [base + (t - base) / (i + 1) for i, t in enumerate(moved)]
    d = [t.to(BF16).float() - base.to(BF16).float() for t in moved]
    mean = torch.stack(d).sum(0) / targets
    bits = (torch.stack([(x - mean).square() for x in d]).sum(0) / targets).view(torch.int32)
    return torch.sort(bits[bits != 0], descending=True).values


def inside(bits: torch.Tensor, topk: float) -> float:
    """Return the fraction of all elements that the bracket of a sample of SAMPLED is expected to hold."""
    present = len(bits) / DRAWN * SAMPLED
    margin = (16 + 4 * math.sqrt(present * topk * (1 - topk))) / present
    high = int(bits[int((topk - margin) * len(bits))]) | 511
    low = int(bits[int((topk + margin) * len(bits))]) & ~511
    return int(((bits >= low) & (bits <= high)).sum()) / DRAWN


def room(targets: int) -> float:
    """Return the fraction of all elements for which there is memory."""
    held = load_emulated().workspace_bytes(targets, NUMEL, 0.5)
    rest = NUMEL / BLOCK * targets + NUMEL / STRETCH * 4 + (1 << 18)
    return (held - rest) / WORD / NUMEL


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("targets", [2, 3, 7, pytest.param(15, marks=pytest.mark.slow)])
@pytest.mark.parametrize("topk", [0.5, 0.1])
def test_candidates_fit(targets: int, topk: float, spread: bool) -> None:
    needed = inside(scores(targets, 1e-3, spread), topk)
    if (targets, topk, spread) == (2, 0.5, False):
        # Two targets that moved alike: their distance is a few steps of bf16, and one score is that of 4 in 100.
        assert needed > room(targets)
    else:
        assert 1.5 * needed < room(targets)
