"""Merges of earlier documents, as models of later ones: their tensors are computed while they are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backends.arrays import DType
from ..checkpoint.header import TensorInfo
from ..checkpoint.source import Source
from .inputs import Input, Stored
from .job import Job


@dataclass(frozen=True, slots=True)
class Merged(Input):
    """A tensor that an earlier merge gives: what `job` would write."""

    stage: str
    job: Job

    @property
    def model(self) -> str:
        return self.stage

    @property
    def tensor(self) -> str:
        return self.job.name

    @property
    def dtype(self) -> DType:
        return self.job.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.job.shape

    @property
    def stored(self) -> tuple[Stored, ...]:
        return self.job.stored

    @property
    def spec(self) -> Any:
        inputs = [[len(x.stored), x.spec] for x in self.job.inputs]
        return ["merged", repr(self.job.rule), self.dtype.code, self.shape, inputs]


class Stage(Source):
    """The result of an earlier merge. Its files beside the weights are those of the model that lends them."""

    def __init__(
        self, name: str, jobs: tuple[Job, ...], config: dict[str, Any], lender: Source
    ) -> None:
        self.jobs = {job.name: job for job in jobs}
        # Places of their own: written out, these tensors would share no bytes, whatever their inputs share.
        tensors = {
            job.name: TensorInfo(
                job.name, job.dtype.code, job.shape, Path(name), number, job.output_bytes
            )
            for number, job in enumerate(jobs)
        }
        super().__init__(name, lender.path, tensors, config, {})
