"""The result of a merge, and the protocol that reports progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ..checkpoint.journal import TensorRecord
from ..plan.plan import Plan


class Progress(Protocol):
    """Told how far a merge is; `advance` is called from any thread."""

    def start(self, title: str, total_bytes: int) -> None: ...
    def advance(self, nbytes: int) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class MergeResult:
    """What a merge did.

    Attributes:
        out_dir: where the merged model lies.
        tensors, parameters: how many it has.
        bytes_read, bytes_written: of tensor data, by this run; what is surveyed and fused is read twice (for a GPU,
            or by columns, once), the second time, if there is memory for it, from the page cache.
        seconds: wall time, from opening the models to the rename that publishes the result.
        shards: names of the weight files.
        energy_share: by target, its part of all selected energy; empty where the method knows no energies.
        exact_path: tensors whose threshold needed more than one survey pass; of a GPU's, those of sce alone.
        resumed: tensors that an earlier run of this merge had written.
        backend: what did the arithmetic.
        notes: what is worth knowing, for example tensors that were left out.
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


def energy_share(plan: Plan, records: Mapping[str, TensorRecord]) -> dict[str, float]:
    energy: dict[str, float] = {}
    for job in plan.jobs:
        found = records[job.name].energy
        # Other methods than sce learn no energies.
        for x, e in zip(job.inputs[1:], found, strict=True) if found else ():
            energy[x.source.name] = energy.get(x.source.name, 0.0) + e
    total = sum(energy.values())
    return {model: e / total if total else 0.0 for model, e in energy.items()}
