"""A survey's workspace: one allocation of about 3 % of the inputs' bytes, whose first part begins as zeros."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .arithmetic import BLOCK
from .sampling import DIGITS, RUN
from .state import STATE, STRIPE, place
from .threshold import CANDIDATES, STRETCH
from .tuning import LEAST_ROWS

_FLOOR = 2 << 20
# Candidates may take one in so many of the inputs' bytes.
_CANDIDATE_SHARE = 60
# Bytes of a candidate: its score and its place.
_CANDIDATE = 8
# One in so many elements is sampled, at most _MOST_SAMPLED; of small tensors one in 32, up to _LEAST_SAMPLED.
_ELEMENTS_PER_SAMPLED = 64
_MOST_SAMPLED = 1 << 20
_LEAST_SAMPLED = 65536
# Tensors of at least so many elements have 32 stripes, others 8.
_MANY = 1 << 23


def needs_scores(select_topk: float, numel: int) -> bool:
    return 0.0 < select_topk < 1.0 and numel > 0


def runs_of(numel: int) -> int:
    """How many runs of 16 elements are sampled."""
    wanted = max(_LEAST_SAMPLED, numel // _ELEMENTS_PER_SAMPLED)
    return int(min(wanted, _MOST_SAMPLED, numel // 32) // place(RUN))


def stripes_of(numel: int) -> int:
    return 32 if numel >= _MANY else 8


def capacity_of(targets: int, numel: int, stripes: int) -> int:
    """How many candidates a stripe holds: a multiple of CANDIDATES, and no more than there can be."""
    tile = place(CANDIDATES)
    wanted = max(_FLOOR, 2 * (targets + 1) * numel // _CANDIDATE_SHARE) // _CANDIDATE // stripes
    return int(max(1, min(wanted // tile, -(-numel // tile))) * tile)


@dataclass(frozen=True)
class Part:
    """A part of a workspace: its dtype, its shape, and its start in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize

    def of(self, memory: torch.Tensor) -> torch.Tensor:
        return memory[self.start : self.start + self.nbytes].view(self.dtype).view(self.shape)


class Layout:
    """The parts of a survey's workspace. `scored`: needs_scores; if false, most parts are empty.

    zeroed: state [64], stripes [stripes, 2], bins [2 or 1, stripes, targets, 256], histograms [6, 2048] int64,
        ties [stretches] int32.
    not zeroed: rare_tiles [tiles of a block row] int32, exponents [targets, blocks] uint8,
        records [stripes, capacity] int64: the candidates; sample [runs, 16] int32 shares their memory, because it is
        read before the first candidate is written.
    """

    def __init__(self, targets: int, numel: int, scored: bool) -> None:
        self.nbytes = 0
        self.stripes = stripes_of(numel)
        self.runs = runs_of(numel) if scored else 0
        self.capacity = capacity_of(targets, numel, self.stripes) if scored else 0
        block = place(BLOCK)
        blocks = -(-numel // block)
        sets = 2 if scored else 1
        self.state = self._take(torch.int64, STATE)
        self.stripe = self._take(torch.int64, self.stripes, place(STRIPE))
        self.bins = self._take(torch.int64, sets, self.stripes, targets, block)
        self.histograms = self._take(torch.int64, 6 if scored else 0, place(DIGITS))
        self.stretches = -(-numel // place(STRETCH)) if scored else 0
        self.ties = self._take(torch.int32, self.stretches)
        self.zeroed = self.nbytes
        self.rare_tiles = self._take(torch.int32, -(-blocks // LEAST_ROWS))
        self.exponents = self._take(torch.uint8, targets if scored else 0, blocks)
        start = self.nbytes
        self.records = self._take(torch.int64, self.stripes, self.capacity)
        self.sample = Part(torch.int32, (self.runs, place(RUN)), start)
        self.nbytes = max(self.nbytes, start + self.sample.nbytes)

    def _take(self, dtype: torch.dtype, *shape: int) -> Part:
        part = Part(dtype, shape, self.nbytes)
        self.nbytes += -(-part.nbytes // 256) * 256
        return part


class Workspace:
    """The parts, as tensors in `memory`: [layout.nbytes] uint8 at least."""

    def __init__(self, layout: Layout, memory: torch.Tensor) -> None:
        memory[: layout.zeroed].zero_()
        self.state = layout.state.of(memory)
        self.stripes = layout.stripe.of(memory)
        self.bins = layout.bins.of(memory)
        self.histograms = layout.histograms.of(memory)
        self.ties = layout.ties.of(memory)
        self.rare_tiles = layout.rare_tiles.of(memory)
        self.exponents = layout.exponents.of(memory)
        self.records = layout.records.of(memory)
        self.sample = layout.sample.of(memory)
