"""The CUDA kernels' surveys beyond SCE's (csrc/include/fuseo1/cuda.h): how they are asked, and what they answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from types import ModuleType

import torch

from ..arrays import Array
from ..errors import BackendError
from . import SurveyResult
from .on_gpu import check_targets, device_of, refuse_rows
from .requests import NOTHING, Band, Clamp, Cut, Draw, Gram, Magnitudes, Norms, Request, Select

#: An address and a dtype's number.
Operand = tuple[int, int]
#: kind, keep, drop, key, limit, address of bits, most: a selection as the kernels' module takes it.
NativeSelect = tuple[int, tuple[int, int], tuple[int, int], int, int, int, float]

#: In the place of a cut for which a selection has no use.
_NO_CUT = (0, 0)


def native_select(kernels: ModuleType, select: Select) -> NativeSelect:
    """One target's selection, or BackendError if the kernels do not know it."""
    if isinstance(select, Band):
        refuse_rows("cuda", select)
        return kernels.SELECT_BAND, _cut(select.keep), _cut(select.drop), 0, 0, 0, 0.0
    if isinstance(select, Draw):
        return kernels.SELECT_DRAW, _NO_CUT, _NO_CUT, select.key, select.limit, 0, 0.0
    if isinstance(select, Clamp):
        return kernels.SELECT_CLAMP, _NO_CUT, _NO_CUT, 0, 0, 0, select.most
    if select is not None:
        raise BackendError(
            f"backend cuda has no selection of kind {type(select).__name__}: use the CPU for this merge"
        )
    return kernels.SELECT_ALL, _NO_CUT, _NO_CUT, 0, 0, 0, 0.0


def _cut(cut: Cut) -> tuple[int, int]:
    return cut.threshold, cut.tie_limit


def sizes_of(kernels: ModuleType, numel: int, request: Request) -> tuple[int, ...]:
    """Bytes on the device: those that a survey works in, then those of each answer."""
    if isinstance(request, Magnitudes):
        cuts = sum(map(len, request.ranks))
        return kernels.magnitudes_bytes(numel), cuts * kernels.CUT_BYTES, kernels.SUMS_BYTES
    return kernels.SUMS_WORK_BYTES, kernels.SUMS_BYTES


def survey_magnitudes(
    kernels: ModuleType, inputs: Sequence[Array], operands: Sequence[Operand], request: Magnitudes
) -> SurveyResult:
    """Waits for the device."""
    targets, numel = len(inputs) - 1, inputs[0].numel
    check_targets(len(request.ranks), targets, "ranks")
    work, found, result = _room(inputs, *sizes_of(kernels, numel, request))
    with stream_of(device_of(inputs)) as stream:
        kernels.survey_magnitudes(
            operands,
            numel,
            request.ranks,
            work.data_ptr(),
            work.nbytes,
            found.data_ptr(),
            result.data_ptr(),
            stream,
        )
    learned, _ = _answer(kernels, result, 0, targets)
    all_cuts = iter([Cut(*cut) for cut in kernels.unpack_cuts(found.cpu().numpy().tobytes())])
    return replace(
        learned, cuts=tuple(tuple(islice(all_cuts, len(ranks))) for ranks in request.ranks)
    )


def survey_norms(
    kernels: ModuleType, inputs: Sequence[Array], operands: Sequence[Operand], request: Norms
) -> SurveyResult:
    """Waits for the device."""
    targets = len(inputs) - 1
    check_targets(len(request.selects), targets, "selections")
    work, result = _room(inputs, *sizes_of(kernels, inputs[0].numel, request))
    with stream_of(device_of(inputs)) as stream:
        kernels.survey_norms(
            operands,
            inputs[0].numel,
            [native_select(kernels, select) for select in request.selects],
            work.data_ptr(),
            result.data_ptr(),
            stream,
        )
    learned, sums = _answer(kernels, result, 2 * targets, targets)
    return replace(learned, norms=tuple(zip(sums, sums, strict=True)))


def survey_gram(
    kernels: ModuleType, inputs: Sequence[Array], operands: Sequence[Operand], request: Gram
) -> SurveyResult:
    """Waits for the device."""
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
    learned, sums = _answer(kernels, result, vectors * vectors, targets)
    gram = tuple(tuple(islice(sums, vectors)) for _ in range(vectors))
    return replace(learned, gram=gram)


def _room(inputs: Sequence[Array], work: int, *answers: int) -> list[torch.Tensor]:
    """Memory of the inputs' device: `work` bytes to work in, and zeros for what is learned."""
    device = device_of(inputs)
    return [
        torch.empty(work, dtype=torch.uint8, device=device),
        *(torch.zeros(n, dtype=torch.uint8, device=device) for n in answers),
    ]


def _answer(
    kernels: ModuleType, result: torch.Tensor, sums: int, targets: int
) -> tuple[SurveyResult, Iterator[float]]:
    """What every such survey learns, and its sums, when the device is done."""
    found, nonfinite, passes = kernels.unpack_sums(result.cpu().numpy().tobytes(), sums, targets)
    return SurveyResult(-1, -1, NOTHING, -1, passes, (), tuple(nonfinite)), iter(found)


@contextmanager
def stream_of(device: torch.device) -> Iterator[int]:
    """Make `device` the current one, and yield its current stream; 0 for the host (tests)."""
    if device.type != "cuda":
        yield 0
        return
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream
