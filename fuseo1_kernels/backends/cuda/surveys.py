"""Surveys other than SCE's on the CUDA kernels (csrc/include/fuseo1/cuda.h): from requests to results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from ...errors import BackendError
from ..arrays import Array
from ..contract import (
    Band,
    Clamp,
    Cut,
    Divergences,
    Draw,
    Gram,
    Magnitudes,
    Norms,
    Overlaps,
    Ranked,
    Request,
    RowFactors,
    Select,
    check_rows,
)
from ..gpu_base import check_factors, check_targets, device_of, upload
from ..results import (
    Counts,
    DivergencesResult,
    GramResult,
    MagnitudesResult,
    NormsResult,
    OverlapsResult,
)

if TYPE_CHECKING:
    from .. import _cuda

#: An address and a dtype's number.
Operand = tuple[int, int]


class NativeRows:
    """Row factors in device memory, as the kernels take them; `rows` may be None."""

    def __init__(self, rows: RowFactors | None, device: torch.device) -> None:
        self._row = rows.row if rows is not None else 1
        self._factors = upload(rows.factors, device) if rows is not None and rows.factors else None

    @property
    def native(self) -> tuple[int, int]:
        """Elements of a row and address of the factors (0: none).

        The factors stay there until this object is collected and the stream has passed their use.
        """
        return self._row, self._factors.data_ptr() if self._factors is not None else 0


class NativeSelects:
    """The targets' selections as the kernels take them, for `numel` elements from flat index `offset` on.

    Holds the memory they need. torch may reuse it on the same stream once this object is collected.
    """

    def __init__(
        self,
        kernels: ModuleType,
        selects: Sequence[Select],
        offset: int,
        numel: int,
        device: torch.device,
    ) -> None:
        check_rows(selects, offset + numel)
        self._rows = [NativeRows(_rows_of(select), device) for select in selects]
        pairs = zip(selects, self._rows, strict=True)
        self.each = [_native_select(kernels, select, rows.native) for select, rows in pairs]
        needed = kernels.deciding_bytes(self.each, numel)
        self._memory = torch.empty(needed, dtype=torch.uint8, device=device)

    @property
    def room(self) -> tuple[int, int]:
        """Address and bytes of the memory in which RANKED and BAND with factors are decided."""
        return self._memory.data_ptr(), self._memory.nbytes


def _native_select(kernels: ModuleType, select: Select, rows: tuple[int, int]) -> _cuda.Select:
    """`rows`: NativeRows.native."""
    made: _cuda.Select = kernels.Select()
    if isinstance(select, Band):
        made = kernels.Select.band(_cut(select.keep), _cut(select.drop), rows)
    elif isinstance(select, Draw):
        made = kernels.Select.draw(select.key, select.limit)
    elif isinstance(select, Ranked):
        made = kernels.Select.ranked(select.key, select.row, select.low, select.span)
    elif isinstance(select, Clamp):
        made = kernels.Select.clamp(select.most)
    elif select is not None:
        raise BackendError(f"{select!r} is no selection (fuseo1_kernels.backends.contract)")
    return made


def _cut(cut: Cut) -> tuple[int, int]:
    return cut.threshold, cut.tie_limit


def sizes_of(kernels: ModuleType, numel: int, request: Request) -> tuple[int, ...]:
    """Bytes of a survey on the device: its workspace, each output, then factors and selections."""
    if isinstance(request, Magnitudes):
        cuts = sum(map(len, request.ranks))
        sizes = kernels.magnitudes_bytes(numel), cuts * kernels.CUT_BYTES, kernels.SUMS_BYTES
        return *sizes, _factors_bytes(request.rows)
    if isinstance(request, Divergences):
        return 4 * (numel // max(request.row, 1)), kernels.SUMS_BYTES
    some = request.selects if isinstance(request, Norms | Overlaps) else None
    selects = () if some is None else selects_sizes(kernels, numel, some)
    return kernels.SUMS_WORK_BYTES, kernels.SUMS_BYTES, *selects


def selects_sizes(kernels: ModuleType, numel: int, selects: Sequence[Select]) -> tuple[int, ...]:
    """Bytes of NativeSelects on the device: its memory, then each selection's factors."""
    rows = [_rows_of(select) for select in selects]
    address = 1  # of the factors: deciding_bytes only asks whether it is 0
    each = [
        _native_select(kernels, select, (r.row, address) if r is not None else (1, 0))
        for select, r in zip(selects, rows, strict=True)
    ]
    return kernels.deciding_bytes(each, numel), *map(_factors_bytes, rows)


def _factors_bytes(rows: RowFactors | None) -> int:
    return len(rows.factors) if rows is not None else 0


def _rows_of(select: Select) -> RowFactors | None:
    return select.rows if isinstance(select, Band) else None


def survey_magnitudes(
    kernels: ModuleType, inputs: Sequence[Array], operands: Sequence[Operand], request: Magnitudes
) -> MagnitudesResult:
    """The cuts after each rank. Waits for the device."""
    targets, numel = len(inputs) - 1, inputs[0].numel
    check_targets(len(request.ranks), targets, "ranks")
    if request.rows is not None:
        check_factors(request.rows, numel)
    rows = NativeRows(request.rows, device_of(inputs))
    work, found, result = _room(inputs, *sizes_of(kernels, numel, request)[:3])
    with stream_of(device_of(inputs)) as stream:
        kernels.survey_magnitudes(
            operands,
            numel,
            request.ranks,
            rows.native,
            (work.data_ptr(), work.nbytes),
            found.data_ptr(),
            result.data_ptr(),
            stream,
        )
    _, counts = _answer(kernels, result, 0, targets)
    all_cuts = iter([Cut(*cut) for cut in kernels.unpack_cuts(found.cpu().numpy().tobytes())])
    cuts = tuple(tuple(islice(all_cuts, len(ranks))) for ranks in request.ranks)
    return MagnitudesResult(**counts, cuts=cuts)


def survey_norms(
    kernels: ModuleType, inputs: Sequence[Array], operands: Sequence[Operand], request: Norms
) -> NormsResult:
    """The sums of |d|. Waits for the device."""
    sums, counts = _survey_selected(kernels, kernels.survey_norms, inputs, operands, request)
    return NormsResult(**counts, norms=tuple(zip(sums, sums, strict=True)))


def survey_overlaps(
    kernels: ModuleType, inputs: Sequence[Array], operands: Sequence[Operand], request: Overlaps
) -> OverlapsResult:
    """How many elements targets have together and alone. Waits for the device."""
    sums, counts = _survey_selected(kernels, kernels.survey_overlaps, inputs, operands, request)
    numbers = map(int, sums)
    return OverlapsResult(**counts, overlaps=tuple(zip(numbers, numbers, strict=True)))


def _survey_selected(
    kernels: ModuleType,
    survey: Callable[..., None],
    inputs: Sequence[Array],
    operands: Sequence[Operand],
    request: Norms | Overlaps,
) -> tuple[Iterator[float], Counts]:
    """Two sums a target."""
    targets, numel = len(inputs) - 1, inputs[0].numel
    check_targets(len(request.selects), targets, "selections")
    selects = NativeSelects(kernels, request.selects, 0, numel, device_of(inputs))
    work, result = _room(inputs, *sizes_of(kernels, numel, request)[:2])
    with stream_of(device_of(inputs)) as stream:
        survey(
            operands,
            numel,
            selects.each,
            work.data_ptr(),
            selects.room,
            result.data_ptr(),
            stream,
        )
    return _answer(kernels, result, 2 * targets, targets)


def survey_gram(
    kernels: ModuleType, inputs: Sequence[Array], operands: Sequence[Operand], request: Gram
) -> GramResult:
    """The inner products. Waits for the device."""
    targets = len(inputs) - 1
    vectors = targets + request.of_inputs
    work, result = _room(inputs, *sizes_of(kernels, inputs[0].numel, request))
    with stream_of(device_of(inputs)) as stream:
        kernels.survey_gram(
            operands,
            inputs[0].numel,
            request.of_inputs,
            work.data_ptr(),
            result.data_ptr(),
            stream,
        )
    sums, counts = _answer(kernels, result, vectors * vectors, targets)
    gram = tuple(tuple(islice(sums, vectors)) for _ in range(vectors))
    return GramResult(**counts, gram=gram)


def survey_divergences(
    kernels: ModuleType, inputs: Sequence[Array], operands: Sequence[Operand], request: Divergences
) -> DivergencesResult:
    """The rows' divergences. Waits for the device."""
    check_targets(1, len(inputs) - 1, "divergences")
    numel = inputs[0].numel
    found, result = _room(inputs, *sizes_of(kernels, numel, request))
    with stream_of(device_of(inputs)) as stream:
        kernels.survey_divergences(
            operands, numel, request.row, found.data_ptr(), result.data_ptr(), stream
        )
    _, counts = _answer(kernels, result, 0, 1)
    return DivergencesResult(**counts, divergences=found.cpu().numpy().tobytes())


def _room(inputs: Sequence[Array], work: int, *answers: int) -> list[torch.Tensor]:
    """Memory on the inputs' device: an uninitialized workspace of `work` bytes, and zeros for each of `answers`."""
    device = device_of(inputs)
    return [
        torch.empty(work, dtype=torch.uint8, device=device),
        *(torch.zeros(n, dtype=torch.uint8, device=device) for n in answers),
    ]


def _answer(
    kernels: ModuleType, result: torch.Tensor, sums: int, targets: int
) -> tuple[Iterator[float], Counts]:
    """Wait for the device; return the survey's sums, and the fields of every result."""
    found, nonfinite, passes = kernels.unpack_sums(result.cpu().numpy().tobytes(), sums, targets)
    return iter(found), Counts(passes=passes, nonfinite=tuple(nonfinite))


@contextmanager
def stream_of(device: torch.device) -> Iterator[int]:
    """Make `device` the current one and yield its current stream; 0 for the host (tests)."""
    if device.type != "cuda":
        yield 0
        return
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream
