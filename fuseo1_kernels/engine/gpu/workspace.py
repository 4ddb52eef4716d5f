"""Computes, before any tensor is read, the device memory that blocking ops need for a rule other than SCE."""

from __future__ import annotations

from collections.abc import Sequence

from ...backends.contract import ALL, Divergences, Gram, Magnitudes, Overlaps, Request, Select
from ...backends.interface import GpuBackend
from ...backends.results import (
    DivergencesResult,
    MagnitudesResult,
    NormsResult,
    OverlapsResult,
    SurveyResult,
)
from ...methods.rule import ByRow, Rule
from ...plan.job import Job
from ..nonfinite import counted_job


def blocking_bytes(job: Job, backend: GpuBackend) -> int:
    """Return the most bytes of device memory that any blocking op allocates through torch to merge `job`.

    Raises BackendError if the backend cannot merge it.
    """
    whole, targets = job.rule, len(job.inputs) - 1
    rule, numel = (whole.rule, whole.row) if isinstance(whole, ByRow) else (whole, job.numel)
    requests, selects = rehearse(rule, numel, targets)
    counted, norms = counted_job(job)
    surveyed = len(counted.inputs) - 1
    surveys = [backend.survey_bytes(surveyed, numel, r) for r in requests or [norms]]
    return max(*surveys, backend.fuse_bytes(targets, numel, selects))


def rehearse(rule: Rule, numel: int, targets: int) -> tuple[list[Request], Sequence[Select]]:
    """Return the requests and the selections that `rule` makes for a tensor. The numbers in them are meaningless.

    The rule gets made-up survey results of the right shape: the memory that a backend needs does not depend on their
    values.
    """
    requests: list[Request] = []
    learned: list[SurveyResult] = []
    while (request := rule.request(learned)) is not None:
        requests.append(request)
        if isinstance(request, Gram):
            # Rules that request inner products select nothing, and some raise for values no tensors can have.
            return requests, ()
        learned.append(_simulated_result(request, numel, targets))
    return requests, rule.params(learned).selects


def _simulated_result(request: Request, numel: int, targets: int) -> SurveyResult:
    """Return a possible result of a survey: no target differs from the base."""
    nonfinite = (0,) * (targets + 2)
    if isinstance(request, Magnitudes):
        cuts = tuple((ALL,) * len(ranks) for ranks in request.ranks)
        return MagnitudesResult(passes=0, nonfinite=nonfinite, cuts=cuts)
    if isinstance(request, Divergences):
        rows = bytes(4 * (numel // request.row))
        return DivergencesResult(passes=0, nonfinite=nonfinite, divergences=rows)
    if isinstance(request, Overlaps):
        return OverlapsResult(passes=0, nonfinite=nonfinite, overlaps=((0, 0),) * targets)
    return NormsResult(passes=0, nonfinite=nonfinite, norms=((0.0, 0.0),) * targets)
