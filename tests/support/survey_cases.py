"""Tensors, what is asked of their surveys, and the answers: the oracles', and of SCE the reference backend's."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Sequence
from functools import cache

import torch

from fuseo1_kernels.backends.arrays import Buffer
from fuseo1_kernels.backends.contract import (
    Band,
    Clamp,
    Draw,
    Gram,
    Magnitudes,
    Norms,
    Overlaps,
    Request,
    Select,
)
from fuseo1_kernels.backends.interface import FileRange, Surveyor
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import (
    Counts,
    GramResult,
    MagnitudesResult,
    NormsResult,
    OverlapsResult,
    SurveyResult,
)
from fuseo1_kernels.in_memory.ops import as_arrays
from support.oracles.surveys import (
    Widened,
    cut_after,
    gram_matrix,
    norm_pair,
    overlap_counts,
    selected,
    widen,
)
from support.tensors import learned, siblings

Dtypes = torch.dtype | Sequence[torch.dtype]
Make = Callable[[int, int, Dtypes], list[torch.Tensor]]
SIZES = (0, 1, 255, 256, 257, 4097, 70_000)
LEAST, PLENTY = 0, 128 << 20


def spread(numel: int, targets: int, dtypes: Dtypes) -> list[torch.Tensor]:
    """Scores nearly all different, unless a dtype is narrow: one read is enough."""
    return siblings(numel, targets, dtypes)


def ties(numel: int, targets: int, dtypes: Dtypes) -> list[torch.Tensor]:
    """Seven values, zeros among them, NaN, infinities, and differences that overflow."""
    g = torch.Generator().manual_seed(numel + targets)
    dealt = itertools.cycle([dtypes] if isinstance(dtypes, torch.dtype) else dtypes)
    kinds = [next(dealt) for _ in range(targets + 1)]
    tensors = [torch.randint(-3, 4, (numel,), generator=g).to(kind) for kind in kinds]
    for i, t in enumerate(tensors):
        t[i * 101 :: 3001] = (torch.nan, torch.inf, -torch.inf)[i % 3]
    tensors[0][77::5003], tensors[1][77::5003] = -3e38, 3e38
    return tensors


def one_tie(numel: int, targets: int, dtypes: Dtypes) -> list[torch.Tensor]:
    """A single score, everywhere."""
    kind = dtypes if isinstance(dtypes, torch.dtype) else dtypes[0]
    return [torch.full((numel,), min(i, 2) / 2, dtype=kind) for i in range(targets + 1)]


MAKES = (spread, ties, one_tie)


def ranks_of(numel: int, targets: int) -> tuple[tuple[int, int], ...]:
    choose = random.Random(numel * 65 + targets)
    of = (0, 1, numel // 5, numel // 2, numel - numel // 10, numel)
    return tuple((choose.choice(of), choose.choice(of)) for _ in range(targets))


def some_selects(d: Sequence[torch.Tensor]) -> tuple[Select, ...]:
    """Every kind in turn."""

    def kind(i: int, x: torch.Tensor) -> Select:
        band = Band(cut_after(x, x.numel() // 3), cut_after(x, x.numel() // 50))
        return (band, Draw(0x0123456789ABCDEF + i, 0x60000000), Clamp(1e-3), None)[i % 4]

    return tuple(kind(i, x) for i, x in enumerate(d))


def expected(
    tensors: Sequence[torch.Tensor], request: Request, exact: Widened | None = None
) -> SurveyResult:
    """The answer of the oracles, which share nothing with the package; to a select_topk the reference's."""
    if isinstance(request, float):
        return load_backend("reference").survey(as_arrays(tensors), request, 1)
    exact = exact or widen(tensors)
    counts = Counts(passes=1, nonfinite=exact.nonfinite)
    if isinstance(request, Magnitudes):
        by_target = zip(exact.d, request.ranks, strict=True)
        cuts = tuple(tuple(cut_after(x, rank) for rank in ranks) for x, ranks in by_target)
        return MagnitudesResult(**counts, cuts=cuts)
    if isinstance(request, Norms):
        by_select = zip(exact.d, request.selects, strict=True)
        return NormsResult(**counts, norms=tuple(norm_pair(x, s) for x, s in by_select))
    if isinstance(request, Overlaps):
        by_select = zip(exact.d, request.selects, strict=True)
        return OverlapsResult(**counts, overlaps=overlap_counts([selected(*x) for x in by_select]))
    assert isinstance(request, Gram)
    return GramResult(**counts, gram=gram_matrix(exact.inputs if request.of_inputs else exact.d))


Answers = list[tuple[Request, SurveyResult]]


def answers_to(tensors: Sequence[torch.Tensor], *topks: float) -> Answers:
    exact, targets = widen(tensors), len(tensors) - 1
    asked: list[Request] = [
        Magnitudes(ranks_of(tensors[0].numel(), targets)),
        Norms(some_selects(exact.d)),
        Overlaps(some_selects(exact.d)),
        Gram(),
        Gram(of_inputs=True),
        *topks,
    ]
    return [(request, expected(tensors, request, exact)) for request in asked]


@cache
def made(
    make: Make, numel: int, targets: int, *dtypes: torch.dtype, topks: tuple[float, ...] = ()
) -> tuple[list[torch.Tensor], Answers]:
    tensors = make(numel, targets, dtypes)
    return tensors, answers_to(tensors, *topks)


def whole(
    tensors: Sequence[torch.Tensor],
    request: Request,
    threads: int = 2,
    max_bytes: int = PLENTY,
    backend: str = "cpu",
) -> SurveyResult:
    return load_backend(backend).survey(as_arrays(tensors), request, threads, max_bytes)


def check(tensors: Sequence[torch.Tensor], answers: Answers, backend: str = "cpu") -> None:
    for request, answer in answers:
        assert learned(whole(tensors, request, backend=backend)) == learned(answer), request


# --- in chunks ---


def take_sample(
    surveyor: Surveyor, tensors: Sequence[torch.Tensor], most: int | None = None
) -> None:
    """Give the surveyor the runs that it asks for, or the first `most` of them."""
    starts, length = surveyor.sample_runs()
    runs = [torch.cat([t[s : s + length] for s in starts[:most]]) for t in tensors if starts]
    surveyor.sample(as_arrays(runs) if runs else [])


def stream(
    surveyor: Surveyor, tensors: Sequence[torch.Tensor], size: int, sampled: bool | None = True
) -> SurveyResult:
    """Survey in chunks of `size` elements, in any order; `sampled` is None where the caller saw to the sample."""
    if sampled is not None:
        take_sample(surveyor, tensors) if sampled else surveyor.sample([])
    inputs, numel = as_arrays(tensors), tensors[0].numel()
    while not surveyor.done:
        offsets = list(range(0, numel, size))
        random.Random(size).shuffle(offsets)
        for at in offsets:
            surveyor.update([a.part(at, min(size, numel - at)) for a in inputs], at)
        surveyor.end_pass()
    return surveyor.result()


def stream_files(
    surveyor: Surveyor, files: Sequence[FileRange], starts: Sequence[int], scratch: Buffer
) -> SurveyResult:
    """Survey tensors in files, in chunks that begin at these elements, the last chunk first."""
    ends = [*starts[1:], (os.fstat(files[0].fd).st_size - files[0].offset) // files[0].dtype.size]
    surveyor.sample_files(files, 100, scratch)
    while not surveyor.done:
        for start, end in reversed([*zip(starts, ends, strict=True)]):
            surveyor.update_files(files, start, end - start, scratch)
        surveyor.end_pass()
    return surveyor.result()
