"""The reference backend: the arithmetic contract in torch, one line a formula. Slow; for reading and for tests.

csrc/include/fuseo1/survey.h and fuse.h state the formulas; docs/arithmetic.md works through them.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator, Sequence

import torch

from ..arrays import Array, Buffer
from . import NOTHING, SURVEY_BYTES, FileRange, FuseParams, InputUnreadable, SurveyResult

_BLOCK = 256
_MOST_SQUARABLE = float.fromhex("0x1.fffffep63")
_TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_BITS = {"bfloat16": torch.int16, "float16": torch.int16, "float32": torch.int32}
_QUIET_NAN = {"bfloat16": 0x7FC0, "float16": 0x7E00, "float32": 0x7FC00000}


def _tensor(array: Array) -> torch.Tensor:
    dtype = _TORCH[array.dtype.name]
    if array.numel == 0:
        return torch.empty(0, dtype=dtype)
    memory = (ctypes.c_char * (array.numel * array.dtype.size)).from_address(array.address)
    return torch.frombuffer(memory, dtype=dtype)


def _task_vectors(inputs: Sequence[Array]) -> list[torch.Tensor]:
    base = _tensor(inputs[0]).float()
    return [_tensor(x).float() - base for x in inputs[1:]]


def _sum(terms: Sequence[torch.Tensor]) -> torch.Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _variance_bits(d: Sequence[torch.Tensor]) -> torch.Tensor:
    """The score of every element as fp32 bits, in int32: non-negative floats order as integers do."""
    mean = _sum(d) / len(d)
    away = [x - mean for x in d]
    return (_sum([a * a for a in away]) / len(d)).view(torch.int32)


def _energy(d: torch.Tensor, selected: torch.Tensor) -> float:
    """The sum of d*d over the selected elements: integers per block of 256, exact per exponent."""
    d = d.clamp(-_MOST_SQUARABLE, _MOST_SQUARABLE)
    padding = -d.numel() % _BLOCK
    q = torch.nn.functional.pad(d * d, (0, padding)).view(-1, _BLOCK)
    kept = torch.nn.functional.pad(selected, (0, padding)).view(-1, _BLOCK)
    exponent = (q.amax(dim=1).view(torch.int32) >> 23).clamp(min=22)
    scale = ((276 - exponent) << 23).view(torch.float32)  # 2^(149 - exponent)
    t = torch.round(q * scale[:, None]).long()
    sums = torch.zeros(256, dtype=torch.int64)
    sums.index_add_(0, exponent, (t * kept).sum(dim=1))
    energy = 0.0
    for e, total in enumerate(sums.tolist()):
        energy += math.ldexp(float(total), e - 149)
    return energy


def _select(bits: torch.Tensor, select_topk: float) -> tuple[int, int, int, int]:
    """(nonzero, selected, threshold, tie_limit) of the exact top-k, ties by lowest flat index."""
    numel = bits.numel()
    if select_topk == 1.0:
        return -1, numel, 0, numel - 1
    if select_topk == 0.0 or numel == 0:
        return -1, 0, NOTHING, -1
    nonzero = int(torch.count_nonzero(bits))
    k = math.floor(select_topk * nonzero)
    if k == 0:
        return nonzero, 0, NOTHING, -1
    values, order = torch.sort(bits, descending=True, stable=True)
    threshold = int(values[k - 1])
    every_tie = k == numel or int(values[k]) != threshold
    return nonzero, k, threshold, numel - 1 if every_tie else int(order[k - 1])


def _mask(bits: torch.Tensor, threshold: int, tie_limit: int, offset: int) -> torch.Tensor:
    index = torch.arange(offset, offset + bits.numel())
    return (bits > threshold) | ((bits == threshold) & (index <= tie_limit))


def _add_and_round(b: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """b + delta, rounded once: to a narrower dtype by way of an fp32 sum that is rounded to odd."""
    s = b + delta
    if dtype == torch.float32:
        return s
    part = s - b
    error = (b - (s - part)) + (delta - part)  # what s lacks, exactly (TwoSum)
    bits = s.view(torch.int32)
    outward = torch.where((error > 0) == (s > 0), 1, -1).to(torch.int32)
    to_odd = (bits & 1 == 0) & ((error > 0) | (error < 0))
    return torch.where(to_odd, bits + outward, bits).view(torch.float32).to(dtype)


class ReferenceBackend:
    name = "reference"

    @property
    def description(self) -> str:
        return f"torch {torch.__version__}, one thread of formulas"

    def survey(
        self,
        inputs: Sequence[Array],
        select_topk: float,
        threads: int,
        max_bytes: int = SURVEY_BYTES,
    ) -> SurveyResult:
        d = _task_vectors(inputs)
        out = ~torch.isfinite(_sum(d))
        bad = [~torch.isfinite(_tensor(x).float()) & out for x in inputs]
        overflow = out & ~torch.stack(bad).any(dim=0)
        d = [x.masked_fill(out, 0.0) for x in d]
        bits = _variance_bits(d)
        nonzero, selected, threshold, tie_limit = _select(bits, select_topk)
        kept = _mask(bits, threshold, tie_limit, 0)
        return SurveyResult(
            nonzero=nonzero,
            selected=selected,
            threshold=threshold,
            tie_limit=tie_limit,
            passes=int(bits.numel() > 0),
            energy=tuple(_energy(x, kept) for x in d),
            nonfinite=tuple(int(b.sum()) for b in [*bad, overflow]),
        )

    def surveyor(
        self,
        targets: int,
        numel: int,
        select_topk: float,
        threads: int,
        max_bytes: int,
        room: Buffer | None = None,
    ) -> WholeSurveyor:
        return WholeSurveyor(self, targets, numel, select_topk)

    def fuse(
        self, inputs: Sequence[Array], params: FuseParams, out: Array, offset: int, threads: int
    ) -> int:
        base = _tensor(inputs[0]).float()
        d = _task_vectors(inputs)
        s = _sum(d)
        survives = [torch.where(s >= 0, x > 0, x < 0) for x in d]
        if params.masked:
            kept = _mask(_variance_bits(d), params.threshold, params.tie_limit, offset)
            survives = [x & kept for x in survives]
        nothing = torch.full_like(base, -0.0)  # the sum of nothing: b + -0.0 is b, for -0.0 too
        num, den = nothing, torch.zeros_like(base)
        for w, x, alive in zip(params.weights, d, survives, strict=True):
            weight = torch.full_like(base, w)
            num = num + torch.where(alive, weight * x, nothing)
            den = den + torch.where(alive, weight, torch.zeros_like(base))
        if params.floor_divisor == 0.0:
            divisor = torch.where(den == 0, torch.ones_like(den), den)
        else:
            divisor = torch.maximum(den, torch.full_like(den, params.floor_divisor))
        merged = _add_and_round(base, num / divisor, _TORCH[out.dtype.name])
        nan = ~torch.isfinite(s) | torch.isnan(merged)
        bits = merged.view(_BITS[out.dtype.name])
        _tensor(out).copy_(bits.masked_fill(nan, _QUIET_NAN[out.dtype.name]).view(merged.dtype))
        return int((~torch.isfinite(_tensor(out))).sum())

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
        for start, inputs in _pieces(files, offset, out.numel, scratch):
            part = out.part(start - offset, inputs[0].numel)
            bad += self.fuse(inputs, params, part, start, threads)
        return bad


def _pieces(
    files: Sequence[FileRange], offset: int, count: int, scratch: Buffer
) -> Iterator[tuple[int, list[Array]]]:
    """(start, inputs) of pieces of [offset, offset + count) that fit into `scratch`, read one by one."""
    step = scratch.nbytes // sum(f.dtype.size for f in files) // _BLOCK * _BLOCK
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
    """Gathers the chunks of a tensor and surveys it whole: simple, at the price of memory."""

    def __init__(
        self, backend: ReferenceBackend, targets: int, numel: int, select_topk: float
    ) -> None:
        self._backend = backend
        self._numel = numel
        self._select_topk = select_topk
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
            parts.append((offset, _tensor(chunk).clone()))

    def sample_files(self, files: Sequence[FileRange], most_runs: int, scratch: Buffer) -> None:
        """A whole tensor needs no sample."""

    def update_files(
        self, files: Sequence[FileRange], offset: int, count: int, scratch: Buffer
    ) -> None:
        for start, inputs in _pieces(files, offset, count, scratch):
            self.update(inputs, start)

    def end_pass(self) -> None:
        whole = [
            torch.cat([t for _, t in sorted(p, key=lambda part: part[0])]) for p in self._parts
        ]
        names = {t: n for n, t in _TORCH.items()}
        arrays = [_array(t, names[t.dtype]) for t in whole]
        self._result = self._backend.survey(arrays, self._select_topk, 1)

    def result(self) -> SurveyResult:
        assert self._result is not None
        return self._result


def _array(tensor: torch.Tensor, dtype_name: str) -> Array:
    from ..arrays import BY_NAME

    return Array(tensor.data_ptr(), BY_NAME[dtype_name], tensor.numel(), tensor)


def load() -> ReferenceBackend:
    return ReferenceBackend()
