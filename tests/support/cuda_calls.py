"""One call of each kind of the CUDA backend, small enough to be made over and over on the host."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fuseo1_kernels.backends.arrays import Array
from fuseo1_kernels.backends.contract import (
    Band,
    Cut,
    Divergences,
    Draw,
    FuseParams,
    Gram,
    Magnitudes,
    Norms,
    Overlaps,
    Ranked,
    Request,
    RowFactors,
)
from fuseo1_kernels.backends.cuda.backend import CudaBackend
from fuseo1_kernels.in_memory.ops import as_array
from support.fuse_cases import tensors_of
from support.tensors import BF16, FP32

NUMEL, TARGETS = 520, 3
TENSORS = [as_array(t) for t in tensors_of(NUMEL, TARGETS, (BF16, FP32))]
OUT = as_array(torch.empty(NUMEL))
#: Kernels of their own decide draws by rank, and bands by rows' factors.
FACTORS = RowFactors(NUMEL // 4, struct.pack("4f", 1.0, 0.5, 2.0, 1.5))
SELECTS = (
    Band(Cut(0x3A800000, 100), rows=FACTORS),
    Draw(1, 1 << 31),
    Ranked(7, 0.2, 0.4, NUMEL // 4),
)


@dataclass(frozen=True)
class Op:
    """A call of the backend, and some of the kernels that it launches."""

    call: Callable[[CudaBackend, Sequence[Array], Array], object]
    kernels: set[str]
    shape: str = f"{NUMEL} elements, {TARGETS} targets"


def surveyed(request: Request, *kernels: str, targets: int = TARGETS) -> Op:
    return Op(
        lambda gpu, tensors, out: gpu.survey(tensors[: targets + 1], request, 1),
        {*kernels},
        f"{NUMEL} elements, {targets} targets",
    )


def fused(params: FuseParams, *kernels: str) -> Op:
    return Op(lambda gpu, tensors, out: gpu.fuse(tensors, params, out, 0, 1), {*kernels})


OPS = {
    "survey of all": surveyed(1.0, "memset", "energy_all", "settle"),
    "survey": surveyed(
        0.3, "memset", "scan", "find_bracket", "finish_candidates", "find_exactly", "settle"
    ),
    "fuse": fused(FuseParams((1.0, 0.5, 0.2)), "fuse"),
    "general fuse": fused(
        FuseParams((1.0, 0.5, 0.2), elect="weighted", selects=SELECTS),
        *("memset", "rank_rows", "decide_band", "fuse_general"),
    ),
    "small": Op(
        lambda gpu, tensors, out: gpu.enqueue_small([tensors] * 2, [out] * 2, 0.5, "fuseo1"),
        {"merge_small"},
        "2 tensors, 3 targets",
    ),
    "norms": surveyed(Norms(SELECTS), "rank_rows", "decide_band", "add_norms", "settle_norms"),
    "overlaps": surveyed(Overlaps(SELECTS), "rank_rows", "add_overlaps", "settle_norms"),
    "gram": surveyed(Gram(), "memset", "add_gram", "settle_gram"),
    "magnitudes": surveyed(
        Magnitudes(((50,), (100,), (0,))), "scan_magnitudes", "find_candidate", "settle_cut"
    ),
    "divergences": surveyed(Divergences(NUMEL // 4), "memset", "find_divergences", targets=1),
}
