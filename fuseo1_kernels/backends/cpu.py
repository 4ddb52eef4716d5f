"""The native CPU backend: C++ kernels for baseline x86-64, AVX2 and AVX-512 (plain elsewhere), all cores, no GIL."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from ..errors import BackendError
from . import _cpu
from .arrays import Array, Buffer
from .contract import (
    SURVEY_BYTES,
    AverageParams,
    Band,
    Clamp,
    Cut,
    Divergences,
    Draw,
    Elect,
    FuseParams,
    Gram,
    Kept,
    Magnitudes,
    Norms,
    Overlaps,
    Ranked,
    Request,
    RowFactors,
    Select,
    check_rows,
    kept_bytes,
)
from .fold import CpuFolder
from .interface import FileRange, InputUnreadable
from .results import (
    Counts,
    DivergencesResult,
    GramResult,
    MagnitudesResult,
    NormsResult,
    OverlapsResult,
    SceResult,
    SurveyResult,
)

_ELECT: dict[Elect, int] = {
    "sum": _cpu.ELECT_SUM,
    "weighted": _cpu.ELECT_WEIGHTED,
    "count": _cpu.ELECT_COUNT,
    "none": _cpu.ELECT_NONE,
}


def _operands(inputs: Sequence[Array], least_targets: int = 1) -> list[tuple[int, int]]:
    if len({a.numel for a in inputs}) != 1:
        raise BackendError("base and targets must have the same number of elements")
    if not least_targets < len(inputs) <= _cpu.MAX_TARGETS + 1:
        raise BackendError(
            f"{least_targets} to {_cpu.MAX_TARGETS} targets are supported, not {len(inputs) - 1}"
        )
    return [(a.address, a.dtype.abi) for a in inputs]


def _native_files(files: Sequence[FileRange]) -> list[tuple[int, int, int]]:
    return [(f.fd, f.dtype.abi, f.offset) for f in files]


def _cut(cut: Cut) -> tuple[int, int]:
    return cut.threshold, cut.tie_limit


def _rows(rows: RowFactors | None) -> tuple[int, bytes]:
    return (rows.row, rows.factors) if rows is not None else (1, b"")


def native_select(select: Select) -> _cpu.Select:
    """One target's selection as the kernels take it. It points into the memory of `select`'s factors."""
    if isinstance(select, Band):
        return _cpu.Select.band(_cut(select.keep), _cut(select.drop), *_rows(select.rows))
    if isinstance(select, Draw):
        return _cpu.Select.draw(select.key, select.limit)
    if isinstance(select, Ranked):
        return _cpu.Select.ranked(select.key, select.row, select.low, select.span)
    if isinstance(select, Clamp):
        return _cpu.Select.clamp(select.most)
    if select is not None:
        raise BackendError(f"{select!r} is no selection (fuseo1_kernels.backends.contract)")
    return _cpu.Select()


def _native(params: FuseParams, offset: int, count: int) -> _cpu.FuseParams:
    """`params` as the kernels take them for elements [offset, offset + count)."""
    check_rows(params.selects, offset + count)
    kept = params.kept or (None,) * len(params.selects)
    return _cpu.FuseParams(
        weights=params.weights,
        shares=params.shares or (),
        alone=params.alone or (),
        elect=_ELECT[params.elect],
        divisor=params.divisor or 0.0,
        floor_divisor=params.floor_divisor,
        scale=params.scale,
        base_scale=params.base_scale,
        selects=[
            _cpu.Select.bits(k.address + offset // 8) if k else native_select(select)
            for select, k in zip(params.selects, kept, strict=True)
        ],
        masked=params.masked,
        threshold=params.threshold,
        tie_limit=params.tie_limit,
    )


def _native_average(
    params: AverageParams, sums: Buffer, count: int
) -> tuple[Sequence[float], float, bool, bool, int]:
    """`params` and the place of the sums of `count` elements as the kernels take them."""
    whole = params.first and params.last
    if not whole and sums.nbytes < 8 * count:
        raise BackendError(f"{count} sums do not fit into {sums.nbytes} bytes")
    return params.weights, params.divisor, params.first, params.last, 0 if whole else sums.address


@contextmanager
def _read_errors() -> Iterator[None]:
    """Turns the kernels' ReadError into InputUnreadable."""
    try:
        yield
    except _cpu.ReadError as error:
        raise InputUnreadable(*error.args) from None


def _stride(runs: int, most_runs: int | None) -> int:
    """The stride that takes at most `most_runs` of `runs` runs."""
    return 1 if most_runs is None else max(1, -(-runs // most_runs))


def _native_survey(targets: int, numel: int, request: Request, max_bytes: int) -> _cpu.Survey:
    """The native survey that answers `request`."""
    if isinstance(request, Magnitudes):
        _check_targets(len(request.ranks), targets, "ranks")
        return _cpu.Survey.magnitudes(numel, request.ranks, max_bytes, *_rows(request.rows))
    if isinstance(request, Norms | Overlaps):
        _check_targets(len(request.selects), targets, "selections")
        check_rows(request.selects, numel)
        create = _cpu.Survey.norms if isinstance(request, Norms) else _cpu.Survey.overlaps
        return create(numel, [native_select(select) for select in request.selects])
    if isinstance(request, Gram):
        return _cpu.Survey.gram(targets, numel, request.of_inputs)
    if isinstance(request, Divergences):
        _check_targets(1, targets, "divergences")
        return _cpu.Survey.divergences(numel, request.row)
    return _cpu.Survey(targets, numel, request, max_bytes)


def _check_targets(asked: int, targets: int, what: str) -> None:
    if asked != targets:
        raise BackendError(f"{what} for {asked} targets, but there are {targets}")


def _answer(survey: _cpu.Survey, request: Request, room: Buffer | None) -> SurveyResult:
    """The result of a finished `survey`. `room`: the memory lent to it."""
    found = survey.result()
    if isinstance(request, int | float):
        return SceResult(**found)
    counts = Counts(passes=found["passes"], nonfinite=found["nonfinite"])
    if isinstance(request, Magnitudes):
        cuts = iter([Cut(*cut) for cut in survey.cuts()])
        by_target = tuple(tuple(islice(cuts, len(ranks))) for ranks in request.ranks)
        return MagnitudesResult(**counts, cuts=by_target)
    if isinstance(request, Divergences):
        return DivergencesResult(**counts, divergences=survey.divergences_of())
    sums = iter(survey.sums())
    if isinstance(request, Norms):
        kept = tuple(Kept(address, room) if address else None for address in survey.kept())
        norms = tuple(zip(sums, sums, strict=True))
        return NormsResult(**counts, norms=norms, kept=kept if any(kept) else ())
    if isinstance(request, Overlaps):
        numbers = map(int, sums)
        return OverlapsResult(**counts, overlaps=tuple(zip(numbers, numbers, strict=True)))
    vectors = len(found["nonfinite"]) - 2 + request.of_inputs
    gram = tuple(tuple(islice(sums, vectors)) for _ in range(vectors))
    return GramResult(**counts, gram=gram)


def _room_to_keep(request: Request, numel: int, most: int) -> Buffer | None:
    """Memory for the drawn masks; None if there are none, they exceed `most` bytes, or it cannot be allocated."""
    nbytes = kept_bytes(request, numel)
    try:
        return Buffer(nbytes) if 0 < nbytes <= most else None
    except OSError:
        return None


class CpuSurveyor:
    """Streams one tensor through the native survey."""

    def __init__(
        self, survey: _cpu.Survey, request: Request, threads: int, room: Buffer | None
    ) -> None:
        self._survey = survey
        self._request = request
        self._threads = threads
        self._room = room
        if room is not None:
            survey.lend((room.address, room.nbytes))

    @property
    def done(self) -> bool:
        return self._survey.phase == _cpu.SURVEY_DONE

    def sample_runs(self, most_runs: int | None = None) -> tuple[Sequence[int], int]:
        starts, length = self._survey.sample_runs()
        return starts[:: _stride(len(starts), most_runs)], length

    def sample(self, inputs: Sequence[Array]) -> None:
        if inputs:
            self._survey.update(_operands(inputs), 0, inputs[0].numel, 1)
        if self._survey.phase == _cpu.SURVEY_SAMPLE:
            self._survey.end_pass()

    def update(self, inputs: Sequence[Array], offset: int) -> None:
        self._survey.update(_operands(inputs), offset, inputs[0].numel, self._threads)

    def sample_files(self, files: Sequence[FileRange], most_runs: int, scratch: Buffer) -> None:
        if self._survey.phase != _cpu.SURVEY_SAMPLE:
            return
        stride = _stride(len(self._survey.sample_runs()[0]), most_runs)
        with _read_errors():
            self._survey.sample_files(
                _native_files(files), stride, (scratch.address, scratch.nbytes)
            )

    def update_files(
        self, files: Sequence[FileRange], offset: int, count: int, scratch: Buffer
    ) -> None:
        with _read_errors():
            self._survey.update_files(
                _native_files(files),
                offset,
                count,
                (scratch.address, scratch.nbytes),
                self._threads,
            )

    def end_pass(self) -> None:
        self._survey.end_pass()

    def result(self) -> SurveyResult:
        return _answer(self._survey, self._request, self._room)


class CpuBackend:
    name = "cpu"
    folder = CpuFolder()

    @property
    def description(self) -> str:
        return f"{_cpu.isa()} kernels (this machine runs {', '.join(_cpu.available_isas())})"

    def survey(
        self,
        inputs: Sequence[Array],
        request: Request,
        threads: int,
        max_bytes: int = SURVEY_BYTES,
        lent: Array | None = None,
    ) -> SurveyResult:
        operands, targets = _operands(inputs), len(inputs) - 1
        survey = _native_survey(targets, inputs[0].numel, request, max_bytes)
        room = _room_to_keep(request, inputs[0].numel, max_bytes // 2)
        if room is not None:
            survey.lend((room.address, room.nbytes))
        elif lent is not None and not isinstance(request, Norms):
            survey.lend((lent.address, lent.nbytes))
        survey.run(operands, threads)
        return _answer(survey, request, room)

    def surveyor(
        self,
        targets: int,
        numel: int,
        request: Request,
        threads: int,
        max_bytes: int,
        room: Buffer | None = None,
    ) -> CpuSurveyor:
        return CpuSurveyor(
            _native_survey(targets, numel, request, max_bytes), request, threads, room
        )

    def fuse(
        self, inputs: Sequence[Array], params: FuseParams, out: Array, offset: int, threads: int
    ) -> int:
        operands = _operands(inputs, least_targets=0)
        if out.numel != inputs[0].numel:
            raise BackendError("the output must have as many elements as the inputs")
        return _cpu.fuse(
            operands,
            _native(params, offset, out.numel),
            offset,
            out.numel,
            out.address,
            out.dtype.abi,
            threads,
        )

    def fuse_files(
        self,
        files: Sequence[FileRange],
        params: FuseParams,
        out: Array,
        offset: int,
        threads: int,
        scratch: Buffer,
    ) -> int:
        with _read_errors():
            return _cpu.fuse_files(
                _native_files(files),
                _native(params, offset, out.numel),
                offset,
                out.numel,
                (scratch.address, scratch.nbytes),
                out.address,
                out.dtype.abi,
                threads,
            )

    def average(
        self,
        inputs: Sequence[Array],
        params: AverageParams,
        sums: Buffer,
        out: Array,
        threads: int,
    ) -> int:
        operands = _operands(inputs, least_targets=0)
        if out.numel != inputs[0].numel:
            raise BackendError("the output must have as many elements as the inputs")
        native = _native_average(params, sums, out.numel)
        return _cpu.average(operands, native, out.numel, out.address, out.dtype.abi, threads)

    def average_files(
        self,
        files: Sequence[FileRange],
        params: AverageParams,
        sums: Buffer,
        out: Array,
        offset: int,
        threads: int,
        scratch: Buffer,
    ) -> int:
        with _read_errors():
            return _cpu.average_files(
                _native_files(files),
                _native_average(params, sums, out.numel),
                offset,
                out.numel,
                (scratch.address, scratch.nbytes),
                out.address,
                out.dtype.abi,
                threads,
            )


def load() -> CpuBackend:
    """The backend, with the instruction set that FUSEO1_ISA names (default: the fastest)."""
    isa = os.environ.get("FUSEO1_ISA", "")
    try:
        _cpu.use_isa(isa)
    except ValueError as error:
        raise BackendError(
            f"FUSEO1_ISA={isa}: {error}; available: {', '.join(_cpu.available_isas())}"
        ) from error
    return CpuBackend()
