"""Selections in torch: csrc/include/fuseo1/select.h states the formulas."""

from __future__ import annotations

import torch

from ..contract import Band, Clamp, Cut, Draw, Ranked, RowFactors, Select
from .philox import words

#: Bits of infinity.
_INFINITY = 0x7F800000


def in_cut(bits: torch.Tensor, cut: Cut, offset: int) -> torch.Tensor:
    """The mask of `cut` on magnitudes or scores, given as fp32 bits in int32, from flat index `offset` on."""
    index = torch.arange(offset, offset + bits.numel())
    return (bits > cut.threshold) | ((bits == cut.threshold) & (index <= cut.tie_limit))


def selected(select: Select, d: torch.Tensor, offset: int) -> torch.Tensor:
    """The mask of one target's selection; `d` is its task vector from flat index `offset` on."""
    if isinstance(select, Band):
        bits = score_bits(d, select.rows, offset)
        return in_cut(bits, select.keep, offset) & ~in_cut(bits, select.drop, offset)
    if isinstance(select, Draw):
        return words(select.key, offset, d.numel()) < select.limit
    if isinstance(select, Ranked):
        return words(select.key, offset, d.numel()) < limits(select, d)
    return torch.ones_like(d, dtype=torch.bool)


def part(d: torch.Tensor, select: Select, offset: int) -> torch.Tensor:
    """z: the selected part of one task vector. Elements that are not finite always take part, unchanged."""
    if isinstance(select, Clamp):
        most = torch.tensor(select.most, dtype=torch.float32)
        z = torch.minimum(torch.maximum(d, -most), most)
    else:
        z = torch.where(selected(select, d, offset), d, torch.zeros_like(d))
    return torch.where(torch.isfinite(d), z, d)


def limits(select: Ranked, d: torch.Tensor) -> torch.Tensor:
    """limit(r) of every element, as int64; `d` has whole rows and may be on any device."""
    n = select.row
    magnitudes = magnitude_bits(d).clamp(max=_INFINITY).view(-1, n)
    # Sorted from the last element to the first: of equals the lowest index then ranks highest.
    ascending = n - 1 - torch.argsort(magnitudes.flip(1), dim=1, stable=True)
    ranks = torch.arange(n, device=d.device).expand_as(ascending)
    r = torch.empty_like(ascending).scatter_(1, ascending, ranks)
    # A tensor, not a Python number: torch on a GPU divides by a number by multiplying by its reciprocal.
    last = torch.tensor(max(n - 1, 1), dtype=torch.float64, device=d.device)
    share = r.double() / last if n > 1 else torch.full_like(r, 0.5, dtype=torch.float64)
    return ((select.low + share * select.span) * 2.0**32).floor().long().view(-1)


def score_bits(d: torch.Tensor, rows: RowFactors | None, offset: int) -> torch.Tensor:
    """|d|, or |d| times its row's factor, as fp32 bits in int32. `d` begins at flat index `offset`."""
    if rows is None or d.numel() == 0:
        return magnitude_bits(d)
    factors = torch.frombuffer(bytearray(rows.factors), dtype=torch.float32)
    of_row = factors[torch.arange(offset, offset + d.numel()) // rows.row]
    return magnitude_bits((d.abs() * of_row).clamp(max=torch.finfo(torch.float32).max))


def magnitude_bits(d: torch.Tensor) -> torch.Tensor:
    """|d| as fp32 bits in int32: non-negative floats have the order of their bits."""
    return d.abs().view(torch.int32)
