"""Whose fault it is that a tensor must not be merged: errors that name the tensor, and the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from ..backends.contract import Norms, SurveyResult
from ..errors import CheckpointError, MergeError
from ..plan.job import Job

T = TypeVar("T")


def to_blame(job: Job, inputs: Sequence[T]) -> tuple[Job, Sequence[T], Norms]:
    """The job, the inputs and the request of a survey that tells whose elements are not finite, if none was asked for.

    It wants a target: a single input is taken twice.
    """
    if len(inputs) == 1:
        job, inputs = replace(job, inputs=job.inputs * 2), [*inputs, *inputs]
    return job, inputs, Norms((None,) * (len(inputs) - 1))


def refuse_nonfinite(job: Job, survey: SurveyResult) -> None:
    """Raise MergeError, naming model and tensor, if the survey found an element that must not be merged."""
    *by_model, overflows = survey.nonfinite
    for x, count in zip(job.inputs, by_model, strict=True):
        if count:
            raise CheckpointError(
                f"model {x.source.name}, tensor {x.info.name}: {count} NaN or infinite elements; mend the "
                "checkpoint, or go on with --nonfinite propagate, which makes those elements NaN"
            )
    if overflows:
        raise MergeError(
            f"tensor {job.name}: at {overflows} elements the difference to model {job.inputs[0].source.name} "
            "overflows fp32"
        )


def refuse_overflow(job: Job, count: int) -> None:
    """Raise MergeError, naming the tensor, if so many merged elements are infinite or NaN."""
    if count:
        raise MergeError(
            f"tensor {job.name}: {count} merged elements overflow {job.dtype.name}; choose a wider "
            "dtype in the config"
        )
