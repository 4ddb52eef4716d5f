"""Tensors like one weight of a base model and of light fine-tunes of it."""

from __future__ import annotations

import torch

#: Standard deviation of the weights of a trained transformer's matrices, about.
BASE_STD = 0.02


def siblings(
    shape: tuple[int, ...],
    targets: int = 3,
    *,
    rms: float = 1e-3,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    device: str = "cpu",
) -> list[torch.Tensor]:
    """Return a base and `targets` fine-tunes: the base plus gaussian task vectors of the given rms."""
    generator = torch.Generator(device).manual_seed(seed)
    base = (torch.randn(shape, generator=generator, device=device) * BASE_STD).to(dtype)
    return [base, *(fine_tune(base, rms, generator) for _ in range(targets))]


def fine_tune(base: torch.Tensor, rms: float, generator: torch.Generator) -> torch.Tensor:
    """Return `base` plus a gaussian task vector, rounded to the base's dtype."""
    drawn = torch.randn(base.shape, generator=generator, device=base.device)
    return drawn.mul_(rms).add_(base).to(base.dtype)
