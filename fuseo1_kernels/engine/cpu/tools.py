"""The interface of a reader of one input, and the tools that computed inputs are computed with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from ...backends.arrays import Array
from ...backends.interface import Backend
from ...plan.job import Job


class Reader(Protocol):
    """Reads one input. An element is the same however reads are cut."""

    def read(self, start: int, out: Array) -> None:
        """Fill `out`, of the input's dtype, with its elements from flat index `start` on. Raises CheckpointError."""


@dataclass(frozen=True)
class Tools:
    """The tools that computed inputs are computed with.

    Attributes:
        backend: the ops.
        threads: returns the number of threads to use; called before every op.
        check_stop: raises MergeError if the merge must end.
        open_merged: returns a reader of what a job gives; as open_reader.
    """

    backend: Backend
    threads: Callable[[], int]
    check_stop: Callable[[], None]
    open_merged: Callable[[Job, ExitStack], Reader]
