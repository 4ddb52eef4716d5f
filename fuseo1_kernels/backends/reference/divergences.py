"""Divergences of a target's rows from the base's, in torch: csrc/include/fuseo1/survey.h states the formulas."""

from __future__ import annotations

import math

import torch

_LANES = 8
_LEAST_SHARE = 1e-8
_LOG2_E = float.fromhex("0x1.71547652b82fep0")
_LN2 = float.fromhex("0x1.62e42fefa39efp-1")
_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")
_LEAST_MANTISSA = 0x3FE6A09E00000000  # bits of 0x1.6a09ep-1
_MANTISSA_BITS = 52


def divergences(base: torch.Tensor, target: torch.Tensor, row: int) -> bytes:
    """The divergence of every row of flat fp32 tensors, as fp32; elements left out are minus infinity in both."""
    if base.numel() == 0:
        return b""
    q, p = (_shares(x.double().view(-1, row)) for x in (base, target))
    found = sum_in_lanes(p * _log(p / q))
    kept = torch.where(found > 0, found, torch.zeros_like(found))
    return kept.float().numpy().tobytes()


def _shares(x: torch.Tensor) -> torch.Tensor:
    """The softmax of every row, plus 1e-8."""
    largest = x.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    e = _exp(x - largest)
    return e / sum_in_lanes(e)[:, None] + _LEAST_SHARE


def sum_in_lanes(terms: torch.Tensor) -> torch.Tensor:
    """The sum of every row: element j is added to lane j mod 8, in order; then the lanes by halves."""
    padded = torch.nn.functional.pad(terms, (0, -terms.shape[1] % _LANES))
    lanes = torch.zeros(terms.shape[0], _LANES, dtype=torch.float64)
    for step in padded.view(terms.shape[0], -1, _LANES).unbind(1):
        lanes = lanes + step
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def _exp(x: torch.Tensor) -> torch.Tensor:
    """exp(x) for x <= 0."""
    small = x <= -700.0
    x = x.masked_fill(small, 0.0)
    k = torch.round(x * _LOG2_E)
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    p = torch.full_like(r, 1.0 / math.factorial(13))
    for n in range(12, -1, -1):
        p = p * r + 1.0 / math.factorial(n)
    return torch.ldexp(p, k).masked_fill(small, 0.0)


def _log(y: torch.Tensor) -> torch.Tensor:
    """log(y) for normal y > 0."""
    bits = y.view(torch.int64)
    k = (bits - _LEAST_MANTISSA) >> _MANTISSA_BITS
    f = (bits - (k << _MANTISSA_BITS)).view(torch.float64) - 1.0
    s = f / (2.0 + f)
    z, w = s * s, s + s
    p = torch.full_like(z, 1.0 / 21)
    for n in range(19, 1, -2):
        p = p * z + 1.0 / n
    return k.double() * _LN2 + (w + w * (z * p))
