"""Figures: cases measured, beside memcpy of the same tensors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import MergeError, counted
from ..system import free_memory
from .calls import calls_of
from .cases import Case
from .timing import MEMCPY, Memcpy, take_turn


@dataclass(frozen=True)
class Figure:
    """A call of a case, measured; the first eight fields are the case's. As JSON: `fuseo1-bench --json`.

    Attributes:
        call: "merge out=", "merge" (to a new output), "survey 1", ... or "fuse out=".
        nbytes: what it must move at the least.
        ms, min_ms: the median and the least of `samples_ms`, milliseconds.
        gb_per_s: `nbytes` by the median, 1e9 bytes a second.
        memcpy_gb_per_s: the same of memcpy, which reads and writes every input, on as many threads in the same minute.
        of_memcpy: the ratio of the two.
    """

    method: str
    parameters: dict[str, Any]
    shape: list[int]
    dtype: str
    targets: int
    backend: str
    threads: int
    data: str
    call: str
    nbytes: int
    ms: float
    min_ms: float
    gb_per_s: float
    memcpy_gb_per_s: float
    of_memcpy: float
    samples_ms: list[float]


def measure(
    cases: Sequence[Case], *, outputs: Sequence[str], passes: bool, rounds: int
) -> list[Figure]:
    """Measure the cases; those of the same tensors and threads take turns, `rounds` times.

    Raises:
        MergeError: there is not enough memory.
    """
    groups: dict[Hashable, list[Case]] = {}
    for case in cases:
        alike = (case.shape, case.dtype, case.tensors, case.data, case.device, case.threads)
        groups.setdefault(alike, []).append(case)
    for group in groups.values():
        _refuse_too_large(group[0], "new" in outputs)
    return [
        figure for group in groups.values() for figure in _measure(group, outputs, passes, rounds)
    ]


def _measure(
    cases: Sequence[Case], outputs: Sequence[str], passes: bool, rounds: int
) -> list[Figure]:
    first = cases[0]
    tensors = first.make_tensors()
    out = torch.zeros_like(tensors[0])
    calls = {
        (number, name): call
        for number, case in enumerate(cases)
        for name, call in calls_of(case, tensors, out, outputs=outputs, passes=passes).items()
    }
    memcpy = Memcpy(tensors, first.threads)
    taken: dict[Hashable, list[float]] = {}
    for _ in range(rounds):
        take_turn(taken, {name: call.work for name, call in calls.items()}, memcpy)
    copies = memcpy.nbytes / statistics.median(taken[MEMCPY])
    return [
        _figure(cases[number], name, call.nbytes, taken[number, name], copies)
        for (number, name), call in calls.items()
    ]


def _figure(
    case: Case, call: str, nbytes: int, seconds: Sequence[float], memcpy_rate: float
) -> Figure:
    rate = nbytes / statistics.median(seconds)
    return Figure(
        method=case.method,
        parameters=case.parameters,
        shape=list(case.shape),
        dtype=case.dtype,
        targets=case.targets,
        backend=case.backend,
        threads=case.threads,
        data=case.data,
        call=call,
        nbytes=nbytes,
        ms=statistics.median(seconds) * 1e3,
        min_ms=min(seconds) * 1e3,
        gb_per_s=rate / 1e9,
        memcpy_gb_per_s=memcpy_rate / 1e9,
        of_memcpy=rate / memcpy_rate,
        samples_ms=[s * 1e3 for s in seconds],
    )


def _refuse_too_large(case: Case, new_output: bool) -> None:
    """Refuse a case whose inputs and their copies, outputs, and fp32 numbers drawn for an input have no room."""
    drawn = 2 * 4 * math.prod(case.shape)
    need = 2 * case.read_bytes + (1 + new_output) * case.tensor_bytes + drawn
    free = free_memory() if case.device == "cpu" else torch.cuda.mem_get_info()[0]
    if need > free:
        shape = "x".join(map(str, case.shape))
        raise MergeError(
            f"{counted(case.tensors, 'tensor')} of {shape} need {need / 1e9:.1f} GB here, and {free / 1e9:.1f} GB"
            " are free; choose a smaller --shape or fewer --targets"
        )
