"""These oracles survey magnitudes, norms, overlaps and Gram matrices by other means: sorting, and Python's integers.

csrc/include/fuseo1/survey.h and select.h are the source of every formula.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fuseo1_kernels.backends.contract import NOTHING, Band, Cut, Draw, Select
from support.oracles.fuse import words

BLOCK = 256
LARGEST = float.fromhex("0x1.fffffep63")  # the largest fp32 whose square is finite


@dataclass(frozen=True)
class Widened:
    """Base and targets in fp32, elements that take no part as zeros: `d` too. nonfinite as in SurveyResult."""

    inputs: list[torch.Tensor]
    d: list[torch.Tensor]
    nonfinite: tuple[int, ...]


def widen(tensors: Sequence[torch.Tensor]) -> Widened:
    inputs = [t.flatten().float() for t in tensors]
    d = [x - inputs[0] for x in inputs[1:]]
    s = d[0]
    for x in d[1:]:
        s = s + x
    out = ~torch.isfinite(s)
    culprits = [out & ~torch.isfinite(x) for x in inputs]
    overflows = out & torch.stack([torch.isfinite(x) for x in inputs]).all(dim=0)
    zero = torch.zeros(())
    return Widened(
        [torch.where(out, zero, x) for x in inputs],
        [torch.where(out, zero, x) for x in d],
        tuple(int(c.sum()) for c in (*culprits, overflows)),
    )


def magnitude_bits(d: torch.Tensor) -> torch.Tensor:
    return d.abs().view(torch.int32).long()


def cut_after(d: torch.Tensor, rank: int) -> Cut:
    """The cut after the `rank` largest |d|, by a stable sort."""
    if rank == 0:
        return Cut(NOTHING, -1)
    score = magnitude_bits(d)
    if rank >= int(score.count_nonzero()):
        return Cut(0, -1)
    order = torch.argsort(score, descending=True, stable=True)
    last, after = order[rank - 1], order[rank]
    whole = score[last] != score[after]
    return Cut(int(score[last]), d.numel() - 1 if whole else int(last))


# --- selections ---


def in_cut(d: torch.Tensor, cut: Cut) -> torch.Tensor:
    score, index = magnitude_bits(d), torch.arange(d.numel())
    return (score > cut.threshold) | ((score == cut.threshold) & (index <= cut.tie_limit))


def selected(d: torch.Tensor, select: Select) -> torch.Tensor:
    """d where it is selected, else 0."""
    if isinstance(select, Draw):
        drawn = torch.from_numpy(words(select.key, 0, d.numel()) < select.limit)
        return torch.where(drawn, d, 0.0)
    if isinstance(select, Band):
        return torch.where(in_cut(d, select.keep) & ~in_cut(d, select.drop), d, 0.0)
    return d


# --- sums of integers ---


def blocks_of(values: torch.Tensor) -> torch.Tensor:
    padded = torch.zeros(-(-values.numel() // BLOCK) * BLOCK)
    padded[: values.numel()] = values
    return padded.view(-1, BLOCK)


def exponents_of(values: torch.Tensor) -> list[int]:
    """E of every block."""
    if values.numel() == 0:
        return []
    largest = magnitude_bits(blocks_of(values)).amax(dim=1) >> 23
    return largest.clamp(min=22).tolist()


def integer_sum(values: torch.Tensor, exponents: Sequence[int]) -> float:
    """The sum as survey.h has it, of fp32 values whose blocks have these exponents."""
    # Powers of two in fp64: nothing is rounded before rint.
    scales = torch.tensor([2.0 ** (149 - e) for e in exponents], dtype=torch.float64)
    by_block = torch.round(blocks_of(values).double() * scales[:, None]).long().sum(dim=1).tolist()
    sums = dict.fromkeys(sorted(exponents), 0)
    for e, n in zip(exponents, by_block, strict=True):
        sums[e] += n
    return sum((math.ldexp(float(n), e - 149) for e, n in sums.items()), 0.0)


def quanta_bound(exponents: Sequence[int]) -> float:
    """How far an integer sum may be from that of its terms: half a unit for each."""
    return sum(BLOCK / 2 * 2.0 ** (e - 149) for e in exponents)


def norm_pair(d: torch.Tensor, select: Select) -> tuple[float, float]:
    exponents = exponents_of(d)
    return integer_sum(d.abs(), exponents), integer_sum(selected(d, select).abs(), exponents)


def overlap_counts(z: Sequence[torch.Tensor]) -> tuple[tuple[int, int], ...]:
    """By target: elements that it has together with others, and alone; one set of indices each."""
    each = [set(x.nonzero().flatten().tolist()) for x in z]
    others = [set().union(*each[:i], *each[i + 1 :]) for i in range(len(each))]
    pairs = zip(each, others, strict=True)
    return tuple((len(mine & theirs), len(mine - theirs)) for mine, theirs in pairs)


def products(v: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return v.clamp(-LARGEST, LARGEST) * w.clamp(-LARGEST, LARGEST)


def gram_matrix(vectors: Sequence[torch.Tensor]) -> tuple[tuple[float, ...], ...]:
    entries = {}
    for (i, v), (k, w) in itertools.combinations_with_replacement(enumerate(vectors), 2):
        p = products(v, w)
        entries[i, k] = entries[k, i] = integer_sum(p, exponents_of(p))
    every = range(len(vectors))
    return tuple(tuple(entries[i, k] for k in every) for i in every)
