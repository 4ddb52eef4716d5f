"""Tensors to measure with: one weight of a base model, and of fine-tunes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import ConfigError

#: Standard deviation of the weights of a trained transformer's matrices, about.
BASE_STD = 0.02

_DEFAULT_RMS = 1e-3
_SAMPLE = 1 << 16


@dataclass(frozen=True)
class Data:
    """The fine-tunes' differences to the base, before they are rounded to their dtype.

    Attributes:
        kind: "gauss": Gaussian task vectors of root mean square `value`; "coarse": of that root mean square with which
            rounding leaves the share `value` of the elements as they are in the base.
    """

    kind: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Data:
        """Of "gauss", "gauss:RMS" or "coarse:SHARE". Raises ConfigError."""
        kind, colon, number = text.partition(":")
        try:
            value = float(number) if colon else _DEFAULT_RMS
        except ValueError:
            value = math.nan
        if kind == "gauss" and 0 < value < math.inf:
            return cls(kind, value)
        if kind == "coarse" and colon and 0 < value < 1:
            return cls(kind, value)
        raise ConfigError(
            f"data {text!r}: must be gauss, gauss:RMS (above 0) or coarse:SHARE (between 0 and 1)"
        )

    def __str__(self) -> str:
        return f"{self.kind}:{self.value:g}"

    def make(
        self, shape: Sequence[int], tensors: int, dtype: torch.dtype, device: str = "cpu"
    ) -> list[torch.Tensor]:
        """Return a base and fine-tunes, `tensors` in all; the same numbers every time."""
        rms = self.value if self.kind == "gauss" else _rms_leaving(self.value, dtype)
        return siblings(tuple(shape), tensors - 1, rms=rms, dtype=dtype, device=device)


def siblings(
    shape: tuple[int, ...],
    targets: int = 3,
    *,
    rms: float = _DEFAULT_RMS,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    device: str = "cpu",
) -> list[torch.Tensor]:
    """Return a base and `targets` fine-tunes: the base plus Gaussian task vectors of the given root mean square."""
    generator = torch.Generator(device).manual_seed(seed)
    base = (torch.randn(shape, generator=generator, device=device) * BASE_STD).to(dtype)
    return [base, *(fine_tune(base, rms, generator) for _ in range(targets))]


def fine_tune(base: torch.Tensor, rms: float, generator: torch.Generator) -> torch.Tensor:
    """Return `base` plus a Gaussian task vector, rounded to the base's dtype."""
    drawn = torch.randn(base.shape, generator=generator, device=base.device)
    return drawn.mul_(rms).add_(base).to(base.dtype)


def _rms_leaving(share: float, dtype: torch.dtype) -> float:
    """The root mean square with which rounding to `dtype` leaves that share of a base unchanged, by bisection."""
    (base,) = siblings((_SAMPLE,), 0, dtype=dtype)
    low, high = 1e-15, 1.0
    for _ in range(50):
        middle = math.sqrt(low * high)
        tuned = fine_tune(base, middle, torch.Generator().manual_seed(1))
        unchanged = torch.count_nonzero(tuned == base).item() / _SAMPLE
        low, high = (middle, high) if unchanged > share else (low, middle)
    return low
