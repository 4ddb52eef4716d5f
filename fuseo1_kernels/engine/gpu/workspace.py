"""What a GPU's kernels need to merge a tensor by a rule other than SCE's, before anything of the tensor is known."""

from __future__ import annotations

from collections.abc import Sequence

from ...backends.contract import ALL, Divergences, Gram, Magnitudes, Request, Select
from ...backends.interface import GpuBackend
from ...backends.results import DivergencesResult, MagnitudesResult, NormsResult, SurveyResult
from ...methods.rule import ByRow, Rule
from ...plan.job import Job
from ..nonfinite import counted_inputs


def needed_bytes(job: Job, backend: GpuBackend) -> int:
    """The most bytes of the device's memory that the backend's ops have of torch at once, to merge `job`.

    BackendError if it cannot.
    """
    whole, targets = job.rule, len(job.inputs) - 1
    rule, numel = (whole.rule, whole.row) if isinstance(whole, ByRow) else (whole, job.numel)
    requests, selects = rehearse(rule, numel, targets)
    _, asked, norms = counted_inputs(job, job.inputs)
    surveys = [backend.survey_bytes(len(asked) - 1, numel, r) for r in requests or [norms]]
    return max(*surveys, backend.fuse_bytes(targets, numel, selects))


def rehearse(rule: Rule, numel: int, targets: int) -> tuple[list[Request], Sequence[Select]]:
    """All that a rule asks of a tensor, and the selections it makes, but for the numbers in them.

    A rule is given answers of the right shape. It makes no difference to a backend what they say.
    """
    requests: list[Request] = []
    learned: list[SurveyResult] = []
    while (request := rule.request(learned)) is not None:
        requests.append(request)
        if isinstance(request, Gram):
            # Rules that ask for it select nothing; some refuse what no tensors can have said.
            return requests, ()
        learned.append(_answer(request, numel, targets))
    return requests, rule.params(learned).selects


def _answer(request: Request, numel: int, targets: int) -> SurveyResult:
    """What a survey could say: that nothing differs from the base."""
    nonfinite = (0,) * (targets + 2)
    if isinstance(request, Magnitudes):
        cuts = tuple((ALL,) * len(ranks) for ranks in request.ranks)
        return MagnitudesResult(passes=0, nonfinite=nonfinite, cuts=cuts)
    if isinstance(request, Divergences):
        rows = bytes(4 * (numel // request.row))
        return DivergencesResult(passes=0, nonfinite=nonfinite, divergences=rows)
    return NormsResult(passes=0, nonfinite=nonfinite, norms=((0.0, 0.0),) * targets)
