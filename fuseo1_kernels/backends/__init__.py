"""Backends: each implements the two ops, `survey` and `fuse`, to the same bits.

A backend that is asked for by name and cannot run raises BackendError; `auto` takes the fastest that runs.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from ..arrays import Array, Buffer, DType
from ..errors import BackendError

#: Default bound on what a survey keeps in memory, bytes.
SURVEY_BYTES = 128 << 20

#: Most targets of one merge (FUSEO1_MAX_TARGETS).
MAX_TARGETS = 64

#: No score reaches it: nothing is selected.
NOTHING = 0x7FFFFFFF


@dataclass(frozen=True)
class SurveyResult:
    """What `survey` learns of a tensor; csrc/include/fuseo1/survey.h defines every field.

    Attributes:
        nonzero: elements whose score is not 0; -1 where no score is needed (select_topk 0 or 1).
        selected: k, how many elements are selected.
        threshold: fp32 bits of the lowest selected score.
        tie_limit: flat index of the last element selected at exactly that score.
        passes: reads of the whole tensor; more than 1 says that the exact path was needed.
        energy: sum of squares of each task vector over the selected elements.
        nonfinite: counts of non-finite elements: base, each target, overflows of finite inputs.
    """

    nonzero: int
    selected: int
    threshold: int
    tie_limit: int
    passes: int
    energy: tuple[float, ...]
    nonfinite: tuple[int, ...]


@dataclass(frozen=True)
class FuseParams:
    """How `fuse` weighs and masks; csrc/include/fuseo1/fuse.h defines every field.

    Weights and floor are fp64 here; a backend rounds them to fp32 first of all.
    """

    weights: tuple[float, ...]
    floor_divisor: float = 0.0
    masked: bool = False
    threshold: int = 0
    tie_limit: int = -1


@dataclass(frozen=True)
class FileRange:
    """A tensor's elements in an open file, from byte `offset` on."""

    fd: int
    offset: int
    dtype: DType


class InputUnreadable(Exception):
    """Input number `input` (0 is the base) could not be read: errno `number`, 0 for the end of its file."""

    def __init__(self, input: int, number: int) -> None:
        super().__init__(input, number)
        self.input, self.number = input, number


class Surveyor(Protocol):
    """A survey of a tensor that comes in chunks. Feed it while it is not `done`, pass after pass."""

    @property
    def done(self) -> bool: ...

    def sample_runs(self) -> tuple[Sequence[int], int]:
        """Starts and common length of the runs it wants before the first pass; no starts: none."""

    def sample(self, inputs: Sequence[Array]) -> None:
        """Take the sampled runs, back to back; then, or if there are none, the first pass begins."""

    def update(self, inputs: Sequence[Array], offset: int) -> None:
        """Take the chunk that starts at flat index `offset`, a multiple of 256, base first."""

    def sample_files(self, files: Sequence[FileRange], most_runs: int, scratch: Buffer) -> None:
        """As `sample`, reading at most `most_runs` of the runs, evenly. Raises InputUnreadable."""

    def update_files(
        self, files: Sequence[FileRange], offset: int, count: int, scratch: Buffer
    ) -> None:
        """As `update`, reading the inputs to `scratch`, piece by piece. Raises InputUnreadable."""

    def end_pass(self) -> None: ...

    def result(self) -> SurveyResult: ...


class Backend(Protocol):
    """The two ops. `inputs` are the base and the targets, each of the same number of elements."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    def survey(
        self,
        inputs: Sequence[Array],
        select_topk: float,
        threads: int,
        max_bytes: int = SURVEY_BYTES,
    ) -> SurveyResult: ...

    def surveyor(
        self, targets: int, numel: int, select_topk: float, threads: int, max_bytes: int
    ) -> Surveyor:
        """`max_bytes` bounds what the survey itself keeps in memory."""

    def fuse(
        self, inputs: Sequence[Array], params: FuseParams, out: Array, offset: int, threads: int
    ) -> int:
        """Write to `out`; returns how many elements were written as infinity or NaN."""

    def fuse_files(
        self,
        files: Sequence[FileRange],
        params: FuseParams,
        out: Array,
        offset: int,
        threads: int,
        scratch: Buffer,
    ) -> int:
        """As `fuse`, reading the inputs to `scratch`, piece by piece. Raises InputUnreadable."""


#: In the order in which `auto` prefers them.
BACKENDS = ("cpu", "reference")


@cache
def load_backend(name: str) -> Backend:
    """The backend `name` ("auto", or one of BACKENDS), or BackendError saying why it cannot run."""
    if name == "auto":
        return _first_that_runs()
    if name not in BACKENDS:
        raise BackendError(
            f"there is no backend {name!r} in this version; use one of: auto, {', '.join(BACKENDS)}"
        )
    try:
        module = importlib.import_module(f".{name}", __package__)
    except ImportError as error:
        raise BackendError(f"backend {name} cannot run here: {error}") from error
    backend: Backend = module.load()
    return backend


def _first_that_runs() -> Backend:
    reasons = []
    for name in BACKENDS:
        try:
            backend = load_backend(name)
        except BackendError as error:
            if not isinstance(error.__cause__, ImportError):
                raise  # it is here, and was asked for what it cannot do
            reasons.append(str(error))
            continue
        for reason in reasons:
            warnings.warn(f"{reason}; {name} is used instead", stacklevel=3)
        return backend
    raise BackendError("; ".join(reasons))


def backend_states() -> dict[str, str]:
    """For each backend, what it runs on, or why it cannot run."""
    states = {}
    for name in BACKENDS:
        try:
            states[name] = load_backend(name).description
        except BackendError as error:
            states[name] = f"absent: {error}"
    for name in ("triton", "cuda"):
        states[name] = "absent: not part of this version"
    return states
