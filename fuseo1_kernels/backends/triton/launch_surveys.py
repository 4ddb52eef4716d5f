"""Launches surveys other than SCE's, and makes their results on the host. They wait for the device."""

from __future__ import annotations

import math
import struct
from typing import Any, TypeAlias

import torch

from ...errors import BackendError
from ..contract import ALL, NONE, Cut, Divergences, Gram, Magnitudes, Norms, Overlaps
from ..gpu_base import allocated, check_factors, check_targets, upload
from ..results import (
    Counts,
    DivergencesResult,
    GramResult,
    MagnitudesResult,
    NormsResult,
    OverlapsResult,
    SurveyResult,
)
from .arithmetic import BLOCK
from .divergences import find_divergences
from .launch_fuse import factors_bytes, factors_on, kinds_of, selects_bytes, selects_on_device
from .launch_sce import EXACT, launch_threshold, tiles_of
from .select import CLAMP, EVERY
from .state import (
    CUT,
    FAILED,
    NONFINITE,
    STATE,
    THRESHOLD,
    TIE_LIMIT,
    place,
)
from .sums import add_gram, add_norms, add_overlaps, count_nonzero
from .tuning import Config
from .workspace import Layout, Workspace, stripes_of

Data = tuple[torch.Tensor, ...]

#: The requests that launch_sce does not answer.
GeneralRequest: TypeAlias = Magnitudes | Norms | Overlaps | Gram | Divergences

# Bytes of arithmetic.by_rows' `rows`.
_TABLE = 16


def survey_general(data: Data, numel: int, request: GeneralRequest, config: Config) -> SurveyResult:
    """Survey `data`, flat tensors of `numel` elements, base first; bf16 as int16. Raises BackendError."""
    if isinstance(request, Norms):
        check_targets(len(request.selects), len(data) - 1, "selections")
        return _survey_norms(data, numel, request, config)
    if isinstance(request, Overlaps):
        check_targets(len(request.selects), len(data) - 1, "selections")
        return _survey_overlaps(data, numel, request, config)
    if isinstance(request, Gram):
        return _survey_gram(data, numel, request, config)
    if isinstance(request, Divergences):
        check_targets(1, len(data) - 1, "divergences")
        return _survey_divergences(data, numel, request, config)
    check_targets(len(request.ranks), len(data) - 1, "ranks")
    return _survey_magnitudes(data, numel, request, config)


def survey_bytes(targets: int, numel: int, request: GeneralRequest) -> int:
    """The most bytes of device memory that survey_general holds at once."""
    stripes, state, size = stripes_of(numel), 8 * STATE, 8 * place(BLOCK)
    if isinstance(request, Magnitudes):
        counts, memory = 8 * stripes * targets, Layout(targets, numel, True).nbytes
        rows = factors_bytes(request.rows), _TABLE
        return allocated(counts, state, max(memory, 8 * targets), *rows)
    if isinstance(request, Divergences):
        return allocated(4 * (numel // max(request.row, 1)), state)
    if isinstance(request, Overlaps):
        counts = 8 * stripes * 2 * targets
        return allocated(counts, state, 16 * targets) + selects_bytes(numel, request.selects)
    vectors = targets + (isinstance(request, Gram) and request.of_inputs)
    sums = vectors * (vectors + 1) // 2 if isinstance(request, Gram) else 2 * targets
    selects = selects_bytes(numel, request.selects) if isinstance(request, Norms) else 0
    return allocated(stripes * sums * size, state, sums * size) + selects


def _survey_magnitudes(
    data: Data, numel: int, request: Magnitudes, config: Config
) -> MagnitudesResult:
    """One read counts; then SCE's threshold search runs per target and rank, on base and target if all is finite."""
    targets = len(data) - 1
    rows: Data = ()
    if request.rows is not None:
        check_factors(request.rows, numel)
        factors = factors_on(data[0].device, request.rows)
        packed = struct.pack("2q", request.rows.row, factors.data_ptr())
        rows = (upload(packed, factors.device).view(torch.int64),)
    counts, state = _zeros(data, stripes_of(numel), targets), _zeros(data, STATE)
    _launch(count_nonzero, data, numel, config, counts, state, rows=rows)
    nonzero: list[int] = counts.sum(dim=0).tolist()
    finite = not any(_nonfinite(state, targets))
    layout = Layout(1 if finite else targets, numel, True)
    memory = torch.empty(layout.nbytes, dtype=torch.uint8, device=state.device)
    cuts, reads = [], [0]
    for i, ranks in enumerate(request.ranks):
        inputs, of = ((data[0], data[i + 1]), 0) if finite else (data, i)
        most = nonzero[i] - (not rows)  # the largest k that needs a search
        found = []
        for k in ranks:
            if k == 0 or k > most:
                found.append((ALL if k else NONE, 0))
                continue
            work, share = Workspace(layout, memory), _share(k, nonzero[i])
            launch_threshold(inputs, numel, share, layout, work, config, of, rows)
            learned = work.state.tolist()
            passes = 1 + learned[place(FAILED)] * (3 + learned[place(CUT)])
            found.append((Cut(learned[place(THRESHOLD)], learned[place(TIE_LIMIT)]), passes))
        cuts.append(tuple(cut for cut, _ in found))
        reads.append(sum(passes for _, passes in found))
    return MagnitudesResult(
        **_counts(state, targets, int(numel > 0) + max(reads)), cuts=tuple(cuts)
    )


def _share(k: int, nonzero: int) -> float:
    """The select_topk with which SCE selects the k largest of `nonzero` elements, k <= nonzero."""
    share = k / nonzero
    while int(share * nonzero) < k:
        share = math.nextafter(share, 1.0)
    return share


def _survey_norms(data: Data, numel: int, request: Norms, config: Config) -> NormsResult:
    targets, kinds = len(data) - 1, kinds_of(request.selects)
    selects, _memory = selects_on_device(data, request.selects)
    bins, state = _bins(data, numel, 2 * targets), _zeros(data, STATE)
    _launch(add_norms, data, numel, config, selects, bins, state, KINDS=kinds)
    sums = _sums(bins)
    every, norms = sums[:targets], []
    for i, some in enumerate(sums[targets:]):
        leaves_out = kinds >> 3 * i & 7 not in map(place, (EVERY, CLAMP))
        norms.append((every[i], some if leaves_out else every[i]))
    return NormsResult(**_counts(state, targets, int(numel > 0)), norms=tuple(norms))


def _survey_overlaps(data: Data, numel: int, request: Overlaps, config: Config) -> OverlapsResult:
    targets, kinds = len(data) - 1, kinds_of(request.selects)
    selects, _memory = selects_on_device(data, request.selects)
    counts, state = _zeros(data, stripes_of(numel), 2, targets), _zeros(data, STATE)
    _launch(add_overlaps, data, numel, config, selects, counts, state, KINDS=kinds)
    together, alone = counts.sum(dim=0).tolist()
    return OverlapsResult(
        **_counts(state, targets, int(numel > 0)), overlaps=tuple(zip(together, alone, strict=True))
    )


def _survey_gram(data: Data, numel: int, request: Gram, config: Config) -> GramResult:
    targets = len(data) - 1
    size = targets + request.of_inputs
    pairs = [(i, j) for i in range(size) for j in range(i, size)]
    bins, state = _bins(data, numel, len(pairs)), _zeros(data, STATE)
    _launch(add_gram, data, numel, config, bins, state, OF_INPUTS=request.of_inputs)
    found = dict(zip(pairs, _sums(bins), strict=True))
    gram = [tuple(found[min(i, j), max(i, j)] for j in range(size)) for i in range(size)]
    return GramResult(**_counts(state, targets, int(numel > 0)), gram=tuple(gram))


def _survey_divergences(
    data: Data, numel: int, request: Divergences, config: Config
) -> DivergencesResult:
    row, state = request.row, _zeros(data, STATE)
    if row < 1 or numel % row:
        raise BackendError(f"rows of {row} in a tensor of {numel}: argument outside the contract")
    found = torch.empty(numel // row, dtype=torch.float32, device=state.device)
    if numel:
        find_divergences[(-(-found.numel() // config.rows),)](
            *(data, found, state, row, numel), ROWS=config.rows, num_warps=config.warps, **EXACT
        )
    raw = found.cpu().numpy().tobytes()
    return DivergencesResult(**_counts(state, 1, int(numel > 0)), divergences=raw)


def _launch(
    kernel: Any,
    data: Data,
    numel: int,
    config: Config,
    *arguments: torch.Tensor,
    rows: Data = (),
    **constants: Any,
) -> None:
    """Launches a kernel of sums.py over all tiles. rows: arithmetic.by_rows' `rows`, or empty."""
    for first, tiles, whole in tiles_of(numel, config):
        kernel[(tiles,)](
            *((*data, *rows), *arguments, first, numel),
            WHOLE=whole,
            TARGETS=len(data) - 1,
            STRIPES=stripes_of(numel),
            ROWS=config.rows,
            num_warps=config.warps,
            **constants,
            **EXACT,
        )


def _zeros(data: Data, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64, device=data[0].device)


def _bins(data: Data, numel: int, sums: int) -> torch.Tensor:
    return _zeros(data, stripes_of(numel), sums, place(BLOCK))


def _sums(bins: torch.Tensor) -> list[float]:
    """Each sum of [stripes, sums, 256] integers in units of 2^(E-149), as fp64, added from the smallest E up."""
    integers = bins.sum(dim=0).cpu()
    sums = torch.zeros(len(integers), dtype=torch.float64)
    for e in integers.any(dim=0).nonzero().flatten().tolist():
        sums += integers[:, e].double() * 2.0 ** (e - 149)
    found: list[float] = sums.tolist()
    return found


def _nonfinite(state: torch.Tensor, targets: int) -> tuple[int, ...]:
    return tuple(state[place(NONFINITE) :][: targets + 2].tolist())


def _counts(state: torch.Tensor, targets: int, passes: int) -> Counts:
    """The fields of every survey's result."""
    return Counts(passes=passes, nonfinite=_nonfinite(state, targets))
