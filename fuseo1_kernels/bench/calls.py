"""Calls: what is timed of a case, and what each must move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..backends.contract import Request
from ..backends.results import SurveyResult
from ..in_memory.merge import merge_tensors
from ..in_memory.ops import as_array, as_arrays, backend_for
from ..methods.rule import Average, ByVector, learn
from .cases import Case
from .timing import Work


@dataclass(frozen=True)
class Call:
    """A call, and the bytes that it must move at the least."""

    work: Work
    nbytes: int


def calls_of(
    case: Case,
    tensors: Sequence[torch.Tensor],
    out: torch.Tensor,
    *,
    outputs: Sequence[str] = ("given", "new"),
    passes: bool = False,
) -> dict[str, Call]:
    """Return the case's calls on `tensors`, base first, by name.

    "merge out=" writes to `out` and "merge" to a new output, where `outputs` has "given" and "new". With `passes` there
    are also "survey 1", ... and "fuse out="; not where rows or columns are merged by themselves.
    """
    merge = partial(
        merge_tensors,
        tensors,
        case.method,
        base_index=0 if case.has_base else None,
        parameters=case.parameters,
        backend=case.backend,
        threads=case.threads,
    )
    calls: dict[str, Call] = {}
    if "given" in outputs:
        calls["merge out="] = Call(partial(merge, out=out), case.merge_bytes)
    if "new" in outputs:
        calls["merge"] = Call(merge, case.merge_bytes)
    return calls | _passes(case, tensors, out) if passes else calls


def _passes(case: Case, tensors: Sequence[torch.Tensor], out: torch.Tensor) -> dict[str, Call]:
    rule = case.rule
    if isinstance(rule, ByVector | Average):
        return {}
    inputs = as_arrays(tensors, least=1)
    backend = backend_for(inputs, case.backend)
    calls: dict[str, Call] = {}

    def survey(request: Request) -> SurveyResult:
        call = partial(backend.survey, inputs, request, case.threads)
        calls[f"survey {len(calls) + 1}"] = Call(call, case.read_bytes)
        return call()

    params = rule.params(learn(rule, survey, lambda _: None))
    fuse = partial(backend.fuse, inputs, params, as_array(out), 0, case.threads)
    return calls | {"fuse out=": Call(fuse, case.read_bytes + case.tensor_bytes)}
