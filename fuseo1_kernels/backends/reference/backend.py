"""The reference backend: the arithmetic contract in torch. Slow; for reading and for tests.

The formulas are in surveys.py, divergences.py, fuse.py, select.py and philox.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch

from ...errors import BackendError
from ..arrays import Array, Buffer
from ..contract import SURVEY_BYTES, AverageParams, DecodeParams, FuseParams, Request, step_of
from ..interface import FileRange, InputUnreadable
from ..results import SurveyResult
from .arrays import TORCH, as_tensor
from .average import average_chunk
from .fold import ReferenceFolder
from .fuse import fuse_chunk
from .surveys import survey_whole

_BLOCK = 256
_CODES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


class ReferenceBackend:
    name = "reference"
    folder = ReferenceFolder()

    @property
    def description(self) -> str:
        return f"torch {torch.__version__}, one thread of formulas"

    def survey(
        self,
        inputs: Sequence[Array],
        request: Request,
        threads: int,
        max_bytes: int = SURVEY_BYTES,
        lent: Array | None = None,
    ) -> SurveyResult:
        return survey_whole([as_tensor(x) for x in inputs], request)

    def decode(
        self, params: DecodeParams, codes: Buffer, start: int, out: Array, threads: int
    ) -> None:
        raw = torch.frombuffer(codes.view, dtype=torch.uint8, count=out.numel)
        index = torch.arange(start, start + out.numel)
        row, column = index // params.columns, index % params.columns
        blocks = -(-params.columns // params.block[1])
        scales = as_tensor(params.scales)[
            row // params.block[0] * blocks + column // params.block[1]
        ]
        as_tensor(out).copy_(raw.view(_CODES[params.code]).float() * scales)

    def surveyor(
        self,
        targets: int,
        numel: int,
        request: Request,
        threads: int,
        max_bytes: int,
        room: Buffer | None = None,
    ) -> WholeSurveyor:
        return WholeSurveyor(self, targets, numel, request)

    def fuse(
        self, inputs: Sequence[Array], params: FuseParams, out: Array, offset: int, threads: int
    ) -> int:
        merged = fuse_chunk([as_tensor(x) for x in inputs], params, offset, TORCH[out.dtype.name])
        as_tensor(out).copy_(merged)
        return int((~torch.isfinite(merged)).sum())

    def fuse_files(
        self,
        files: Sequence[FileRange],
        params: FuseParams,
        out: Array,
        offset: int,
        threads: int,
        scratch: Buffer,
    ) -> int:
        bad = 0
        for start, inputs in _pieces(files, offset, out.numel, scratch, step_of(params.selects)):
            part = out.part(start - offset, inputs[0].numel)
            bad += self.fuse(inputs, params, part, start, threads)
        return bad

    def average(
        self,
        inputs: Sequence[Array],
        params: AverageParams,
        sums: Buffer,
        out: Array,
        threads: int,
    ) -> int:
        return self._average(inputs, params, _sums(sums, params, out.numel), out)

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
        whole, bad = _sums(sums, params, out.numel), 0
        for start, inputs in _pieces(files, offset, out.numel, scratch):
            at, count = start - offset, inputs[0].numel
            bad += self._average(inputs, params, whole[at : at + count], out.part(at, count))
        return bad

    def _average(
        self, inputs: Sequence[Array], params: AverageParams, sums: torch.Tensor, out: Array
    ) -> int:
        merged = average_chunk([as_tensor(x) for x in inputs], params, sums, TORCH[out.dtype.name])
        if merged is None:
            return 0
        as_tensor(out).copy_(merged)
        return int((~torch.isfinite(merged)).sum())


def _sums(buffer: Buffer, params: AverageParams, count: int) -> torch.Tensor:
    """The sums of an average, in `buffer` if other calls need them."""
    if (params.first and params.last) or count == 0:
        return torch.empty(count, dtype=torch.float64)
    return torch.frombuffer(buffer.view, dtype=torch.float64, count=count)


def _pieces(
    files: Sequence[FileRange], offset: int, count: int, scratch: Buffer, least: int = _BLOCK
) -> Iterator[tuple[int, list[Array]]]:
    """Read [offset, offset + count) into `scratch` piece by piece; yield each piece's (start, inputs).

    A piece has a multiple of `least` elements, unless everything fits at once. Raises InputUnreadable.
    """
    room = scratch.nbytes // sum(f.dtype.size for f in files)
    step = max(count, 1) if count <= room else room // least * least
    if step == 0:
        raise BackendError(f"pieces of {least} elements do not fit into {scratch.nbytes} bytes")
    for start in range(offset, offset + count, step):
        n = min(step, offset + count - start)
        inputs, at = [], 0
        for number, f in enumerate(files):
            size = f.dtype.size
            inputs.append(scratch.array(f.dtype, n, at))
            end = at + n * size
            while at < end:
                place = f.offset + (start + n) * size - (end - at)
                try:
                    got = os.preadv(f.fd, [scratch.view[at:end]], place)
                except OSError as error:
                    raise InputUnreadable(number, error.errno or 0) from None
                if got == 0:
                    raise InputUnreadable(number, 0)
                at += got
        yield start, inputs


class WholeSurveyor:
    """Collects the chunks of a tensor and surveys it whole: simple, at the cost of memory."""

    def __init__(
        self, backend: ReferenceBackend, targets: int, numel: int, request: Request
    ) -> None:
        self._backend = backend
        self._numel = numel
        self._request = request
        self._parts: list[list[tuple[int, torch.Tensor]]] = [[] for _ in range(targets + 1)]
        self._result: SurveyResult | None = None

    @property
    def done(self) -> bool:
        return self._result is not None

    def sample_runs(self, most_runs: int | None = None) -> tuple[Sequence[int], int]:
        return (), 0

    def sample(self, inputs: Sequence[Array]) -> None:
        """A whole tensor needs no sample."""

    def update(self, inputs: Sequence[Array], offset: int) -> None:
        for parts, chunk in zip(self._parts, inputs, strict=True):
            parts.append((offset, as_tensor(chunk).clone()))

    def sample_files(self, files: Sequence[FileRange], most_runs: int, scratch: Buffer) -> None:
        """A whole tensor needs no sample."""

    def update_files(
        self, files: Sequence[FileRange], offset: int, count: int, scratch: Buffer
    ) -> None:
        for start, inputs in _pieces(files, offset, count, scratch):
            self.update(inputs, start)

    def end_pass(self) -> None:
        nothing = torch.empty(0)  # an empty tensor has no chunks
        whole = [
            torch.cat([t for _, t in sorted(p, key=lambda part: part[0])]) if p else nothing
            for p in self._parts
        ]
        names = {t: n for n, t in TORCH.items()}
        arrays = [_array(t, names[t.dtype]) for t in whole]
        self._result = self._backend.survey(arrays, self._request, 1)

    def result(self) -> SurveyResult:
        assert self._result is not None
        return self._result


def _array(tensor: torch.Tensor, dtype_name: str) -> Array:
    from ..arrays import BY_NAME

    return Array(tensor.data_ptr(), BY_NAME[dtype_name], tensor.numel(), tensor)


def load() -> ReferenceBackend:
    return ReferenceBackend()
