"""A tensor in a GPU's memory, merged by any rule: survey after survey, then the fuse, by the ops that wait."""

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
from ..nonfinite import JobGuard, counted_inputs
from ..worker import MergeContext
from .context import GpuContext
from .staging import Stopped

_Surveys = dict[Request, SurveyResult]


class Found(NamedTuple):
    """What was learned of a tensor: the surveys that were made of it now, and what the journal says of all."""

    made: _Surveys
    energy: tuple[float, ...]
    passes: int


class BlockingMerger:
    """Merges on a gpu by the backend's ops that wait. They end on the host, so that nothing need wait for the kernels.

    An op has the kernels' stream, and the memory for what it allocates (`ContextSize.own`), for itself. Between two ops
    others have their turn: nobody waits for what a rule makes of its surveys.
    """

    def __init__(self, gpu: GpuContext, context: MergeContext) -> None:
        self._gpu = gpu
        self._context = context

    def merge(self, job: Job, inputs: Sequence[Array], out: Array) -> Found:
        """Merge what is on the device; MergeError where the result must not be written."""
        made: _Surveys = {}
        passes = 0
        for start, part in job.parts():
            arrays = [x.part(start, part.numel) for x in inputs]
            guard = self._context.guard(part)
            learned, new = self._learn(part, arrays, guard)
            self._fuse(part, arrays, learned, guard, out.part(start, part.numel))
            if part is job:
                made = new
            # Most of these surveys read a tensor more than once: here that is no sign of the exact path.
            passes = max([passes, *(min(survey.passes, 1) for survey in learned)])
        return Found(made, (), passes)

    def _learn(
        self, job: Job, inputs: Sequence[Array], guard: JobGuard
    ) -> tuple[list[SurveyResult], _Surveys]:
        """Return the surveys that the rule requests, and those of them that are new."""
        made: _Surveys = {}

        def survey(request: Request) -> SurveyResult:
            kept, _ = self._context.look_up(job, request)
            if kept is None:
                kept = made[request] = self._survey(inputs, request)
            return kept

        return learn(job.rule, survey, guard.check_survey), made

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
        guard.check_output(written, learned, lambda: self._count_nonfinite(job, inputs))

    def _count_nonfinite(self, job: Job, inputs: Sequence[Array]) -> SurveyResult:
        _, inputs, request = counted_inputs(job, inputs)
        return self._survey(inputs, request)

    @contextmanager
    def _turn(self) -> Iterator[GpuBackend]:
        """The backend, with the stream of the kernels to itself."""
        if self._context.stop.is_set():
            raise Stopped
        with self._gpu.enqueuing, self._gpu.kernels.current():
            yield self._gpu.backend
