"""Merges a tensor in a GPU's memory by any rule, with the backend's blocking ops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ...backends.arrays import Array
from ...backends.contract import Request
from ...backends.interface import GpuBackend
from ...backends.results import SurveyResult
from ...methods.rule import learn
from ...plan.job import Job
from ..nonfinite import JobGuard, count_nonfinite
from ..worker import MergeContext
from .context import GpuContext
from .staging import Stopped

_Surveys = dict[Request, SurveyResult]


class SurveySummary(NamedTuple):
    """The surveys of one tensor.

    Attributes:
        new: surveys made in this merge, by request.
        energy: by target, as in the journal.
        passes: the most passes of any survey, as in the journal.
    """

    new: _Surveys
    energy: tuple[float, ...]
    passes: int


class BlockingMerger:
    """Merges on a GPU with the backend's blocking ops. They return when their kernels have ended.

    One op at a time uses the kernels' stream and the memory for torch's allocations (`ContextSize.torch_bytes`).
    Workers take turns between ops, so that none waits while a rule computes its next request.
    """

    def __init__(self, gpu: GpuContext, context: MergeContext) -> None:
        self._gpu = gpu
        self._context = context

    def merge(self, job: Job, inputs: Sequence[Array], out: Array) -> SurveySummary:
        """Merge `inputs` into `out`, all on the device. Raises MergeError if the result must not be written."""
        new: _Surveys = {}
        passes = 0
        for start, part in job.parts():
            arrays = [x.part(start, part.numel) for x in inputs]
            guard = self._context.guard(part)
            learned, new_of_part = self._learn(part, arrays, guard)
            self._fuse(part, arrays, learned, guard, out.part(start, part.numel))
            if part is job:
                new = new_of_part
            # On GPUs most of these surveys read a tensor several times, which is not the exact path: count one pass.
            passes = max([passes, *(min(survey.passes, 1) for survey in learned)])
        return SurveySummary(new, (), passes)

    def _learn(
        self, job: Job, inputs: Sequence[Array], guard: JobGuard
    ) -> tuple[list[SurveyResult], _Surveys]:
        """Return the surveys that the rule requests, and the new ones by request."""
        new: _Surveys = {}

        def survey(request: Request) -> SurveyResult:
            kept, _ = self._context.look_up(job, request)
            if kept is None:
                kept = new[request] = self._survey(inputs, request)
            return kept

        return learn(job.rule, survey, guard.check_survey), new

    def _survey(self, inputs: Sequence[Array], request: Request) -> SurveyResult:
        with self._turn() as backend:
            return backend.survey(inputs, request, 1)

    def _fuse(
        self,
        job: Job,
        inputs: Sequence[Array],
        learned: Sequence[SurveyResult],
        guard: JobGuard,
        out: Array,
    ) -> None:
        params = job.rule.params(learned)
        with self._turn() as backend:
            written = backend.fuse(inputs, params, out, 0, 1)
        guard.check_output(written, learned, lambda: count_nonfinite(job, inputs, self._survey))

    @contextmanager
    def _turn(self) -> Iterator[GpuBackend]:
        """Yield the backend while no other worker uses the kernels' stream. Raises Stopped."""
        if self._context.stop.is_set():
            raise Stopped
        with self._gpu.enqueuing, self._gpu.kernels.current():
            yield self._gpu.backend
