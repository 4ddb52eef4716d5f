"""Errors about non-finite elements in a merge of files: they name the model and the tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from ..backends.contract import Norms, Request
from ..backends.results import SurveyResult
from ..errors import CheckpointError, MergeError
from ..methods.nonfinite import NonfiniteGuard, count_request
from ..plan.job import Job

T = TypeVar("T")


class JobGuard(NonfiniteGuard):
    """Decides on the non-finite elements of one job."""

    def __init__(self, mode: str, job: Job) -> None:
        super().__init__(mode)
        self._job = job

    def refuse_inputs(self, counts: Sequence[int]) -> None:
        *by_model, overflows = counts
        # If there is only one input, it was surveyed as base and as target (`counted_job`).
        for x, count in zip(self._job.inputs, by_model, strict=False):
            if count:
                raise CheckpointError(
                    f"model {x.model}, tensor {x.tensor}: {count} NaN or infinite elements; mend the "
                    "checkpoint, or go on with --nonfinite propagate, which makes those elements NaN"
                )
        if overflows:
            raise MergeError(
                f"tensor {self._job.name}: at {overflows} elements the difference to model "
                f"{self._job.inputs[0].model} overflows fp32"
            )

    def refuse_overflow(self, written: int) -> None:
        raise MergeError(
            f"tensor {self._job.name}: {written} merged elements overflow {self._job.dtype.name}; choose a wider "
            "dtype in the config"
        )


def counted_job(job: Job) -> tuple[Job, Norms]:
    """Return the job and the request of a survey that counts the inputs' non-finite elements.

    A survey needs a target, so a single input is given as base and as target.
    """
    if len(job.inputs) == 1:
        job = replace(job, inputs=job.inputs * 2)
    return job, count_request(len(job.inputs))


def count_nonfinite(
    job: Job, inputs: Sequence[T], survey: Callable[[Sequence[T], Request], SurveyResult]
) -> SurveyResult:
    """Return a survey of `job` that counts the inputs' non-finite elements, made by `survey`."""
    if len(inputs) == 1:
        inputs = [*inputs, *inputs]
    return survey(inputs, count_request(len(inputs)))
