"""The result of a merge, and the protocol that reports progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ..checkpoint.journal import TensorRecord
from ..plan.job import Job
from ..plan.plan import Plan


class Progress(Protocol):
    """Reports how far a merge is. `advance` may be called from any thread."""

    def start(self, title: str, total_bytes: int) -> None: ...
    def advance(self, nbytes: int) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class MergeResult:
    """The result of a merge.

    Attributes:
        out_dir: directory of the merged model.
        tensors, parameters: how many the merged model has.
        bytes_read, bytes_written: bytes of tensor data, in this run. Every survey pass and the fuse read a tensor
            once; after the first read it comes from the page cache if memory allows. On a GPU, and by columns, a
            tensor is read once.
        seconds: wall time, from opening the models to publishing the result.
        shards: names of the weight files.
        energy_share: by target, its share of all selected energy; empty for methods without energies.
        exact_path: number of tensors whose threshold took more than one survey pass; on GPUs counted for sce only.
        resumed: number of tensors that an earlier run of this merge wrote.
        backend: name and description of the backend.
        notes: remarks, for example on tensors that are left out.
    """

    out_dir: str
    tensors: int
    parameters: int
    bytes_read: int
    bytes_written: int
    seconds: float
    shards: tuple[str, ...]
    energy_share: dict[str, float]
    exact_path: int
    resumed: int
    backend: str
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def start(progress: Progress | None, title: str, total_bytes: int) -> Callable[[int], None]:
    """Start `progress`, if there is one; return the function that advances it."""
    if progress is None:
        return lambda nbytes: None
    progress.start(title, total_bytes)
    return progress.advance


def fits(record: TensorRecord, job: Job) -> bool:
    """Whether `record` can be that of `job`: it has an energy for each target, or none."""
    return len(record.energy) in (0, len(job.inputs) - 1)


def energy_share(plan: Plan, records: Mapping[str, TensorRecord]) -> dict[str, float]:
    """Return each target's share of the energy of all tensors; empty for methods other than sce."""
    energy: dict[str, float] = {}
    for job in plan.jobs:
        by_target = records[job.name].energy
        for x, e in zip(job.inputs[1:], by_target, strict=True) if by_target else ():
            energy[x.model] = energy.get(x.model, 0.0) + e
    total = sum(energy.values())
    return {model: e / total if total else 0.0 for model, e in energy.items()}
