"""Which elements are selected, in torch: csrc/include/fuseo1/select.h states the formulas."""

from __future__ import annotations

import torch

from .philox import words
from .requests import Band, Cut, Draw, Select


def in_cut(bits: torch.Tensor, cut: Cut, offset: int) -> torch.Tensor:
    """The mask of `cut` on magnitudes or scores, given as fp32 bits in int32, from flat index `offset` on."""
    index = torch.arange(offset, offset + bits.numel())
    return (bits > cut.threshold) | ((bits == cut.threshold) & (index <= cut.tie_limit))


def selected(select: Select, d: torch.Tensor, offset: int) -> torch.Tensor:
    """The mask of one target's selection; `d` is its task vector from flat index `offset` on."""
    if isinstance(select, Band):
        bits = magnitude_bits(d)
        return in_cut(bits, select.keep, offset) & ~in_cut(bits, select.drop, offset)
    if isinstance(select, Draw):
        return words(select.key, offset, d.numel()) < select.limit
    return torch.ones_like(d, dtype=torch.bool)


def magnitude_bits(d: torch.Tensor) -> torch.Tensor:
    """|d| as fp32 bits, in int32: non-negative floats order as integers do."""
    return d.abs().view(torch.int32)
