"""The general fuse against its float64 oracle, on bf16 fine-tunes, with equal masks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from fuseo1_kernels import fuse
from fuseo1_kernels.backends.contract import (
    Band,
    Clamp,
    Draw,
    Elect,
    FuseParams,
    Magnitudes,
    Select,
)
from fuseo1_kernels.backends.reference.philox import words
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import MagnitudesResult, expect
from fuseo1_kernels.in_memory.ops import as_arrays
from support.fuse_cases import ELECTS
from support.oracles import general as general_oracle
from support.oracles import sce as sce_oracle
from support.pairwise import pairwise
from support.tensors import BF16, FP32, bits, siblings

N = 3
NUMEL = 1024 * 1024
KEEP, DROP = NUMEL // 5, NUMEL // 100
LIMIT = 1 << 31
MOST = 1e-3
SELECTS = ("all", "band", "draw", "clamp")
#: That every instruction set gives the same bits is tested elsewhere.
BACKENDS = ("reference", "cpu")


def fp32(x: float) -> float:
    return float(torch.tensor(x, dtype=FP32))


# Numbers without small ratios. With 0.3 or 0.7 one sum in ten lies exactly between two bf16 numbers, but for what the
# weight itself lacks: neither fp32 nor float64 tells that from what lies beside it, and each rounds as it happens to.
WEIGHTS = tuple(map(fp32, (0.318309886, 0.577215665, 0.414213562)))

#: Parameters of fuse and of the oracle: the mean of the survivors, and everything that scales.
HOW: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"divisor": fp32(1.2533), "scale": fp32(0.7071), "base_scale": fp32(0.8862)},
}


@cache
def tensors() -> tuple[torch.Tensor, ...]:
    return tuple(siblings((1024, 1024), N, BF16, rms=1e-3, growing=False))


@cache
def selects(kind: str) -> tuple[Select, ...]:
    if kind == "band":
        arrays = as_arrays(list(tensors()))
        asked = Magnitudes(((KEEP, DROP),) * N)
        found = load_backend("reference").survey(arrays, asked, 1)
        return tuple(Band(keep, drop) for keep, drop in expect(MagnitudesResult, found).cuts)
    if kind == "draw":
        return tuple(Draw(1000 + i, LIMIT) for i in range(N))
    return (Clamp(MOST) if kind == "clamp" else None,) * N


@cache
def taking_part(kind: str) -> tuple[torch.Tensor, ...]:
    """The task vectors in float64, zero where an element takes no part."""
    base, *targets = (t.double().flatten() for t in tensors())
    d = [t - base for t in targets]
    if kind == "band":
        masks = [general_oracle.largest(x, KEEP) & ~general_oracle.largest(x, DROP) for x in d]
    elif kind == "draw":
        masks = [words(1000 + i, 0, NUMEL) < LIMIT for i in range(N)]
    elif kind == "clamp":
        return tuple(x.clamp(-fp32(MOST), fp32(MOST)) for x in d)
    else:
        return tuple(d)
    return tuple(torch.where(mask, x, 0.0) for mask, x in zip(masks, d, strict=True))


def exact(kind: str, weights: tuple[float, ...], elect: Elect, **how: Any) -> torch.Tensor:
    base = tensors()[0].double().flatten()
    return general_oracle.merge(base, taking_part(kind), weights, elect, **how)


def different(merged: torch.Tensor, right: torch.Tensor) -> int:
    """How many elements are not those of the float64 merge, rounded; of 100,000."""
    wrong = bits(merged.flatten()) != bits(sce_oracle.rounded(right, BF16))
    return int(wrong.sum()) * 100_000 // NUMEL


def merged_by(backend: str, params: FuseParams) -> torch.Tensor:
    return fuse(tensors()[0], tensors()[1:], params, backend=backend)


@pairwise("backend, kind, elect, how", BACKENDS, tuple(SELECTS), ELECTS, tuple(HOW), together=1)
def test_few_elements_differ(backend: str, kind: str, elect: Elect, how: str) -> None:
    params = FuseParams(WEIGHTS, elect=elect, selects=selects(kind), **HOW[how])
    assert different(merged_by(backend, params), exact(kind, WEIGHTS, elect, **HOW[how])) < 5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("elect", ELECTS)
def test_equal_weights_decide_ties_alike(backend: str, elect: Elect) -> None:
    """Ties between votes, and between bf16 numbers, are exact in both: not one in 100,000 differs."""
    params = FuseParams((1.0,) * N, elect=elect, selects=selects("band"))
    assert different(merged_by(backend, params), exact("band", (1.0,) * N, elect)) < 1


def test_shares_and_a_floor_under_their_sum(backend: str) -> None:
    shares = WEIGHTS[::-1]
    params = FuseParams(WEIGHTS, elect="weighted", shares=shares, selects=selects("band"))
    merged = merged_by(backend, replace(params, floor_divisor=0.5))
    assert different(merged, exact("band", WEIGHTS, "weighted", shares=shares, floor=0.5)) < 5
    assert not torch.equal(merged, merged_by(backend, params))
