"""The surveys in torch, one line per formula: csrc/include/fuseo1/survey.h states them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..contract import (
    ALL,
    NONE,
    Cut,
    Divergences,
    Magnitudes,
    Norms,
    Overlaps,
    Request,
    RowFactors,
    Select,
)
from ..results import (
    Counts,
    DivergencesResult,
    GramResult,
    MagnitudesResult,
    NormsResult,
    OverlapsResult,
    SceResult,
    SurveyResult,
)
from .divergences import divergences
from .select import in_cut, part, score_bits, selected

_BLOCK = 256
_MOST_SQUARABLE = float.fromhex("0x1.fffffep63")


def survey_whole(inputs: Sequence[torch.Tensor], request: Request) -> SurveyResult:
    """Survey a whole tensor: flat base and targets of any of the three dtypes."""
    wide = [x.float() for x in inputs]
    d = task_vectors(wide)
    out = ~torch.isfinite(total(d))
    counts = Counts(passes=int(out.numel() > 0), nonfinite=_count_nonfinite(wide, out))
    if isinstance(request, Divergences):
        base, target = (x.masked_fill(out, -math.inf) for x in wide)
        return DivergencesResult(**counts, divergences=divergences(base, target, request.row))
    raw = d
    wide, d = ([x.masked_fill(out, 0.0) for x in every] for every in (wide, d))
    if isinstance(request, int | float):
        return _survey_scores(d, request, counts)
    if isinstance(request, Magnitudes):
        pairs = zip(d, request.ranks, strict=True)
        cuts = tuple(_cuts(x, ranks, request.rows) for x, ranks in pairs)
        return MagnitudesResult(**counts, cuts=cuts)
    if isinstance(request, Norms):
        return NormsResult(**counts, norms=tuple(map(_norms, d, raw, request.selects)))
    if isinstance(request, Overlaps):
        z = [part(x, select, 0) for x, select in zip(raw, request.selects, strict=True)]
        return OverlapsResult(**counts, overlaps=_overlaps([(x != 0) & ~out for x in z]))
    return GramResult(**counts, gram=_gram(wide if request.of_inputs else d))


def task_vectors(wide: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """d_i = x_i - b of fp32 tensors; base first."""
    return [x - wide[0] for x in wide[1:]]


def total(terms: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of one or more tensors, in order."""
    s = terms[0]
    for term in terms[1:]:
        s = s + term
    return s


def variance_bits(d: Sequence[torch.Tensor]) -> torch.Tensor:
    """The score of every element as fp32 bits in int32: non-negative floats have the order of their bits."""
    mean = total(d) / len(d)
    away = [x - mean for x in d]
    return (total([a * a for a in away]) / len(d)).view(torch.int32)


def _count_nonfinite(wide: Sequence[torch.Tensor], out: torch.Tensor) -> tuple[int, ...]:
    """Of the elements `out`, whose s is not finite: how many are not finite by input, and how many overflow."""
    bad = [~torch.isfinite(x) & out for x in wide]
    overflow = out & ~torch.stack(bad).any(dim=0)
    return tuple(int(b.sum()) for b in [*bad, overflow])


def _exact_sum(q: torch.Tensor, kept: torch.Tensor) -> float:
    """The sum of q over the elements `kept`: integers per block of 256, added exactly per exponent."""
    padding = -q.numel() % _BLOCK
    q = torch.nn.functional.pad(q, (0, padding)).view(-1, _BLOCK)
    kept = torch.nn.functional.pad(kept, (0, padding)).view(-1, _BLOCK)
    exponent = (q.abs().amax(dim=1).view(torch.int32) >> 23).clamp(min=22)
    scale = ((276 - exponent) << 23).view(torch.float32)  # 2^(149 - exponent)
    t = torch.round(q * scale[:, None]).long()
    sums = torch.zeros(256, dtype=torch.int64)
    sums.index_add_(0, exponent, (t * kept).sum(dim=1))
    result = 0.0
    for e, integers in enumerate(sums.tolist()):
        result += math.ldexp(float(integers), e - 149)
    return result


def _squarable(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-_MOST_SQUARABLE, _MOST_SQUARABLE)


# --- SCE ---


def _survey_scores(d: Sequence[torch.Tensor], select_topk: float, counts: Counts) -> SceResult:
    bits = variance_bits(d)
    nonzero, k, cut = _select(bits, select_topk)
    kept = in_cut(bits, cut, 0)
    energy = tuple(_exact_sum(_squarable(x) * _squarable(x), kept) for x in d)
    return SceResult(
        **counts,
        nonzero=nonzero,
        selected=k,
        threshold=cut.threshold,
        tie_limit=cut.tie_limit,
        energy=energy,
    )


def _select(bits: torch.Tensor, select_topk: float) -> tuple[int, int, Cut]:
    """(nonzero, k, cut) of the exact top-k."""
    numel = bits.numel()
    if select_topk == 1.0:
        return -1, numel, Cut(0, numel - 1)
    if select_topk == 0.0 or numel == 0:
        return -1, 0, NONE
    nonzero = int(torch.count_nonzero(bits))
    k = math.floor(select_topk * nonzero)
    return nonzero, k, _cut(*_ordered(bits), k)


def _ordered(bits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`bits` in descending order, and their flat indices; among equals the lowest index is first."""
    values, order = torch.sort(bits, descending=True, stable=True)
    return values, order


def _cut(values: torch.Tensor, order: torch.Tensor, k: int) -> Cut:
    """The cut after the first k of `_ordered`."""
    if k == 0:
        return NONE
    threshold, numel = int(values[k - 1]), values.numel()
    every_tie = k == numel or int(values[k]) != threshold
    return Cut(threshold, numel - 1 if every_tie else int(order[k - 1]))


# --- other surveys; `d` is finite, `raw` may not be ---


def _cuts(d: torch.Tensor, ranks: Sequence[int], rows: RowFactors | None) -> tuple[Cut, ...]:
    """For each rank the cut after that many of the largest |d|; zeros are never selected."""
    values, order = _ordered(score_bits(d, rows, 0))
    most = int(torch.count_nonzero(values)) - (rows is None)
    return tuple(ALL if k > max(most, 0) else _cut(values, order, k) for k in ranks)


def _norms(d: torch.Tensor, raw: torch.Tensor, select: Select) -> tuple[float, float]:
    """The sums of |d|, over all elements and over the selected ones; `raw` decides the selection."""
    everything, kept = torch.ones_like(d, dtype=torch.bool), selected(select, raw, 0)
    return _exact_sum(d.abs(), everything), _exact_sum(d.abs(), kept)


def _overlaps(has: Sequence[torch.Tensor]) -> tuple[tuple[int, int], ...]:
    """By target, how many elements it has together with others, and how many alone."""
    together = torch.stack(list(has)).sum(dim=0) > 1
    return tuple((int((x & together).sum()), int((x & ~together).sum())) for x in has)


def _gram(v: Sequence[torch.Tensor]) -> tuple[tuple[float, ...], ...]:
    """The inner products of all pairs."""
    v = [_squarable(x) for x in v]
    everything = torch.ones_like(v[0], dtype=torch.bool)
    return tuple(tuple(_exact_sum(x * y, everything) for y in v) for x in v)
