"""Merges by merge_checkpoints: short ways to call it, and models that are hard on it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch

from fuseo1_kernels import MergeResult, merge_checkpoints
from support.models import Family, make_family, tuned, write_model
from support.tensors import BF16
from support.tuning import current

MIB = 1 << 20

LARGE = 1280, 1024  # in bf16, 2.6 MB a model: more than the least memory holds


def merge(family: Family, out: str = "results/merged", **options: Any) -> MergeResult:
    return merge_checkpoints(family.config, family.home / out, tuning=current(), **options)


class Told:
    """Is told how far a merge is: `advanced` bytes of `total`."""

    def __init__(self) -> None:
        self.total = self.advanced = self.closed = 0
        self._lock = threading.Lock()

    def start(self, title: str, total_bytes: int) -> None:
        self.total = total_bytes

    def advance(self, nbytes: int) -> None:
        assert nbytes >= 0
        with self._lock:
            self.advanced += nbytes

    def close(self) -> None:
        self.closed += 1


def oversized_family(home: Path) -> Family:
    """Tensors that do not fit into a worker's share: random deltas, and two of many ties."""
    g = torch.Generator().manual_seed(5)
    base = {
        "model.embed_tokens.weight": torch.randn(LARGE, generator=g) * 0.02,
        "model.layers.0.mlp.up_proj.weight": torch.randn(LARGE, generator=g) * 0.02,
        "model.layers.0.mlp.down_proj.weight": torch.zeros(LARGE),
        "model.norm.weight": torch.ones(1024),
    }
    states = [{n: t.to(BF16) for n, t in base.items()}, *(tuned(base, i, BF16) for i in (1, 2, 3))]
    for number, state in enumerate(states[1:], start=1):
        state["model.layers.0.mlp.down_proj.weight"] = torch.full(LARGE, number / 64, dtype=BF16)
    return make_family(home, states)


def spoil(family: Family, model: int, name: str, values: dict[int, float]) -> None:
    for place, value in values.items():
        family.states[model][name].view(-1)[place] = value
    write_model(family.models[model], family.states[model])
