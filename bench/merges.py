"""Whole merges from the command line, and what their inputs are in before: what several benchmarks share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import page_cache
from checkpoints import Siblings, write_config
from processes import SELDOM, Run, run

TARGETS = 3


@dataclass(frozen=True)
class Merges:
    """Merges of the same models; `work` is where their recipes and outputs are for a while."""

    models: Siblings
    work: Path

    @property
    def inputs(self) -> list[Path]:
        return weight_files(self.models)

    @property
    def out(self) -> Path:
        return self.work / "out"

    def command(self, program: Sequence[str], select_topk: float, *options: str) -> list[str]:
        """Return the command line of a merge; it writes `self.out`."""
        file = self.work / "merge.yaml"
        config = write_config(file, self.models.base, self.models.targets, select_topk)
        return [*program, str(config), str(self.out), *options]

    def merge(
        self,
        command: Sequence[str],
        *,
        cold: bool = False,
        every: float = SELDOM,
        look: Callable[[Path], object] | None = None,
        told: list[str] | None = None,
    ) -> Run:
        """Run a merge; `look` sees the output before it is deleted, `told` gets what the merge said."""
        prepare(self.inputs, cold)
        result = run(command, every=every, told=told)
        if look is not None:
            look(self.out)
        shutil.rmtree(self.out)
        return result

    def clear(self) -> None:
        """Delete what a merge that failed has left, from which the next one would go on."""
        for left in self.work.glob(f"{self.out.name}*"):
            shutil.rmtree(left, ignore_errors=True)


def prepare(inputs: Sequence[Path], cold: bool) -> None:
    """Put the inputs into the page cache, or drop them from it; let all writing end."""
    os.sync()
    (page_cache.make_cold if cold else page_cache.warm)(inputs)


def weight_files(models: Siblings) -> list[Path]:
    """Return the files with the weights, the base's first; the output will be as large as that."""
    return [path / "model.safetensors" for path in (models.base, *models.targets)]
