"""These cases give fuse more than SCE does: elections, selections, divisors, and tensors that make them matter."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from fuseo1_kernels.backends.contract import (
    NONE,
    Band,
    Clamp,
    Cut,
    Draw,
    Elect,
    FuseParams,
    Select,
)
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.in_memory.ops import as_array
from support.tensors import BF16, FP16, FP32, siblings

ELECTS: tuple[Elect, ...] = ("sum", "weighted", "count", "none")
MIXED = (BF16, FP32, FP16)
WEIGHTS = (0.7, -0.3, 0.45, 1.5, -0.01)

#: Each mode changes defaults of FuseParams; weights, election and selections come on top.
MODES: tuple[dict[str, object], ...] = (
    {},
    {"floor_divisor": 0.4},
    {"divisor": 1.0},
    {"divisor": -3.0, "base_scale": -1.0},
    {"shares": (1.0, 1.0, 1.0), "scale": 0.3},
    {"shares": (0.1, -0.2, 0.1), "scale": -1.7, "base_scale": 0.9},
    {"alone": (1.2, 3.0, 1.05), "shares": (1.0, 1.0, 1.0)},
    {"alone": (1.25, -0.5, 0.0), "divisor": 2.0},
    {"masked": True, "threshold": 0x35000000, "tie_limit": 999},
    {"masked": True, "threshold": 0x34800000, "floor_divisor": 1e-6, "scale": -1.0},
)


@cache
def tensors_of(numel: int, targets: int, dtypes: tuple[torch.dtype, ...]) -> list[torch.Tensor]:
    """Fine-tunes in which many |d| are alike, some are 0, bases are -0.0, and some are not finite."""
    tensors = siblings(numel, targets, dtypes)
    g = torch.Generator().manual_seed(numel)
    for t in tensors[1:]:
        coarse = torch.randint(-3, 4, (numel,), generator=g) * 0.001
        t[::2] = (tensors[0].float() + coarse)[::2].to(t.dtype)
    for t in tensors:
        t[::7] = -0.0
    for i, t in enumerate(tensors[1:]):
        t[5 + i :: 1013] = (torch.inf, -torch.inf, torch.nan)[i % 3]
    if tensors[0].numel() > 3000:
        tensors[0][3000] = torch.inf
    return tensors


def weights_of(targets: int) -> tuple[float, ...]:
    return tuple(itertools.islice(itertools.cycle(WEIGHTS), targets))


def fused(
    backend: str,
    tensors: Sequence[torch.Tensor],
    params: FuseParams,
    dtype: torch.dtype = FP32,
    offset: int = 0,
    threads: int = 2,
    chunk: int | None = None,
) -> torch.Tensor:
    """The output of `fuse`, made in chunks of so many elements; the count of what is not finite in it is right."""
    out = torch.full(tensors[0].shape, 7.0, dtype=dtype)
    inputs, to = [as_array(t.contiguous()) for t in tensors], as_array(out)
    step, bad = chunk or max(to.numel, 1), 0
    for start in range(0, max(to.numel, 1), step):
        count = min(step, to.numel - start)
        parts, part = [x.part(start, count) for x in inputs], to.part(start, count)
        bad += load_backend(backend).fuse(parts, params, part, offset + start, threads)
    assert bad == int((~torch.isfinite(out)).sum())
    return out


def bits_of(x: float) -> int:
    return int(struct.unpack("I", struct.pack("f", x))[0])


def selections(targets: int) -> dict[str, tuple[Select, ...]]:
    """One of every kind, and all kinds in turn."""
    tie = bits_of(float(torch.tensor(0.001, dtype=BF16)))
    band = Band(Cut(tie, 2001))
    between = Band(Cut(bits_of(5e-4), 300), Cut(bits_of(2.5e-3), 100))
    ties = Band(Cut(tie, 255), Cut(tie, 40))
    draw = Draw(0x0123456789ABCDEF, 0xA0000000)
    clamp = Clamp(7e-4)
    every: tuple[Select, ...] = (band, draw, None, clamp, between, ties)
    same: dict[str, Select] = {
        "band": band,
        "between": between,
        "ties": ties,
        "draw": draw,
        "clamp": clamp,
    }
    kinds: dict[str, tuple[Select, ...]] = {k: (s,) * targets for k, s in same.items()}
    in_turn = tuple(itertools.islice(itertools.cycle(every), targets))
    return {"all": (), **kinds, "in turn": in_turn, "none": (Band(NONE),) * targets}


def bit_masks(numel: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Three random masks, and their bits in words: as many as they need and no more."""
    masks = [np.random.default_rng(i).random(numel) < (0.1, 0.5, 0.9)[i] for i in range(3)]
    padded = [np.pad(mask, (0, -numel % 64)) for mask in masks]
    return masks, [np.packbits(mask, bitorder="little").view("<u8").copy() for mask in padded]
