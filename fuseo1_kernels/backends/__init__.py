"""Backends: each implements the two ops, `survey` and `fuse`, to the same bits.

A backend that is asked for by name and cannot run raises BackendError; `auto` takes the fastest that runs.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeGuard, TypeVar

from ..arrays import Array, Buffer, DType
from ..errors import BackendError
from .requests import NOTHING as NOTHING
from .requests import Cut as Cut
from .requests import FuseParams as FuseParams
from .requests import Kept as Kept
from .requests import Request as Request
from .requests import Select as Select

#: Default bound on what a survey keeps in memory, bytes.
SURVEY_BYTES = 128 << 20

#: Most targets of one merge (FUSEO1_MAX_TARGETS).
MAX_TARGETS = 64


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
        cuts: of Magnitudes: by target, by rank.
        norms: of Norms: by target, the sums of |d| over all elements and over the selected ones.
        gram: of Gram: the matrix, row by row.
        divergences: of Divergences: fp32, one a row, as in RowFactors.
        kept: of Norms: by target what chance has decided, where there was memory for it; or empty.

    What answers another request is empty, -1, or NOTHING.
    """

    nonzero: int
    selected: int
    threshold: int
    tie_limit: int
    passes: int
    energy: tuple[float, ...]
    nonfinite: tuple[int, ...]
    cuts: tuple[tuple[Cut, ...], ...] = ()
    norms: tuple[tuple[float, float], ...] = ()
    gram: tuple[tuple[float, ...], ...] = ()
    divergences: bytes = b""
    kept: tuple[Kept | None, ...] = field(default=(), compare=False)

    @property
    def lasting(self) -> SurveyResult:
        """Without what lies in memory."""
        return replace(self, kept=())


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

    def sample_runs(self, most_runs: int | None = None) -> tuple[Sequence[int], int]:
        """Starts and common length of the runs it wants before the first pass; no starts: none.

        With `most_runs` at most that many of them, spread evenly.
        """

    def sample(self, inputs: Sequence[Array]) -> None:
        """Take the sampled runs, back to back; then, or if there are none, the first pass begins."""

    def update(self, inputs: Sequence[Array], offset: int) -> None:
        """Take the chunk that starts at flat index `offset`, a multiple of 256, base first."""

    def sample_files(self, files: Sequence[FileRange], most_runs: int, scratch: Buffer) -> None:
        """As `sample`, reading what `sample_runs(most_runs)` names. Raises InputUnreadable."""

    def update_files(
        self, files: Sequence[FileRange], offset: int, count: int, scratch: Buffer
    ) -> None:
        """As `update`, reading the inputs to `scratch`, piece by piece. Raises InputUnreadable."""

    def end_pass(self) -> None: ...

    def result(self) -> SurveyResult: ...


class Ops(Protocol):
    """The two ops. `inputs` are the base and the targets, each of the same number of elements."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    def survey(
        self,
        inputs: Sequence[Array],
        request: Request,
        threads: int,
        max_bytes: int = SURVEY_BYTES,
        lent: Array | None = None,
    ) -> SurveyResult:
        """`lent`: memory that it may overwrite, besides the `max_bytes` of its own."""

    def fuse(
        self, inputs: Sequence[Array], params: FuseParams, out: Array, offset: int, threads: int
    ) -> int:
        """Write to `out`; returns how many elements were written as infinity or NaN."""


class Backend(Ops, Protocol):
    """The ops in the CPU's memory, and on files."""

    def surveyor(
        self,
        targets: int,
        numel: int,
        request: Request,
        threads: int,
        max_bytes: int,
        room: Buffer | None = None,
    ) -> Surveyor:
        """`max_bytes` bounds what the survey itself keeps in memory, besides what it puts into `room`.

        One survey after the other can use the same room: fresh memory costs time to be cleared. What a result
        says was kept is there until then.
        """

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


@dataclass(frozen=True)
class OnDevice:
    """What a survey left in a GPU's memory, as torch tensors: its result, and the parameters that fuse takes."""

    result: Any
    params: Any
    targets: int


@dataclass(frozen=True)
class Room:
    """A GPU's memory for a survey, as torch tensors of bytes that begin at multiples of 256.

    `work` is used until the stream has passed the survey (`workspace_bytes`), `result` and `params` by whoever
    wants them (`result_bytes`, `params_bytes`).
    """

    work: Any
    result: Any
    params: Any


class GpuBackend(Ops, Protocol):
    """The ops in a GPU's memory. What is called enqueue is enqueued on the current stream and waits for nothing."""

    @property
    def max_targets(self) -> int: ...

    @property
    def result_bytes(self) -> int: ...

    @property
    def params_bytes(self) -> int: ...

    def workspace_bytes(self, targets: int, numel: int, select_topk: float) -> int: ...

    def survey_bytes(self, targets: int, numel: int, request: Request) -> int:
        """The most bytes that `survey` has of torch at once for such a request, other than SCE's.

        BackendError if there is no such survey.
        """

    def fuse_bytes(self, targets: int, numel: int, selects: Sequence[Select]) -> int:
        """The same of `fuse` with such selections, other than SCE's."""

    def enqueue_survey(
        self, inputs: Sequence[Array], select_topk: float, variant: str, room: Room | None = None
    ) -> OnDevice:
        """Survey into `room`, or into memory of the backend's own."""

    def enqueue_fuse(
        self, inputs: Sequence[Array], survey: OnDevice, out: Array, offset: int = 0
    ) -> None: ...

    def place(self, inputs: Sequence[Array], params: FuseParams) -> OnDevice:
        """`params` on the inputs' device, as if a survey had left them there; its result is all 0."""

    def numbers(self, survey: OnDevice) -> tuple[Any, Any]:
        """A survey and its parameters as fp64 tensors on the device, in the layout of torch_ops."""

    def from_numbers(self, params: Any) -> OnDevice:
        """Parameters in that layout as fuse takes them; the result is all 0."""

    def result(self, survey: OnDevice) -> tuple[SurveyResult, int]:
        """Wait for what was enqueued: the survey, and how many outputs were infinite or NaN."""

    def pack_params(self, params: FuseParams) -> bytes:
        """What `enqueue_fuse` wants in `OnDevice.params`; its `result` is zeros then."""

    def unpack_result(self, raw: bytes, targets: int) -> tuple[SurveyResult, int]:
        """As `result`, from the bytes of `OnDevice.result`."""


_PACKAGE = __name__.rpartition(".")[0]
_NO_CUDA = "its kernels are not part of this build (README.md: FUSEO1_CUDA=1)"


class SmallBackend(GpuBackend, Protocol):
    """One that also merges many small tensors in one launch."""

    @property
    def most_small(self) -> int:
        """Elements of a small tensor, at most."""

    def enqueue_small(
        self,
        tensors: Sequence[Sequence[Array]],
        outs: Sequence[Array],
        select_topk: float,
        variant: str,
    ) -> OnDevice:
        """Survey and fuse tensors of as many targets each."""

    def results(self, surveys: OnDevice) -> list[tuple[SurveyResult, int]]:
        """`result` of every tensor of a launch."""


def can_enqueue(backend: Ops) -> TypeGuard[GpuBackend]:
    """Whether `backend` is one for a GPU's memory."""
    return hasattr(backend, "enqueue_survey")


def can_enqueue_small(backend: Ops) -> TypeGuard[SmallBackend]:
    return hasattr(backend, "enqueue_small")


#: In the order in which `auto` prefers them.
BACKENDS = ("cpu", "reference")
#: The same, of those for tensors in a GPU's memory.
GPU_BACKENDS = ("cuda", "triton")


@cache
def load_backend(name: str) -> Backend:
    """The backend `name` ("auto", or one of BACKENDS), or BackendError saying why it cannot run."""
    if name == "auto":
        backend, reasons = first_that_runs()
        for reason in reasons:
            warnings.warn(f"{reason}; {backend.name} is used instead", stacklevel=2)
        return backend
    if name in GPU_BACKENDS:
        raise BackendError(
            f"backend {name} merges tensors that are in a GPU's memory; the CPU's are merged by: auto,"
            f" {', '.join(BACKENDS)}"
        )
    if name not in BACKENDS:
        raise BackendError(
            f"there is no backend {name!r} in this version; use one of: auto, {', '.join(BACKENDS)}"
        )
    loaded: Backend = _load(name)
    return loaded


@cache
def load_gpu_backend(name: str) -> GpuBackend:
    """The backend `name` ("auto", or one of GPU_BACKENDS) for tensors in a GPU's memory, or BackendError."""
    if name in BACKENDS:
        raise BackendError(f"backend {name} works in the CPU's memory; move the tensors there")
    if name != "auto" and name not in GPU_BACKENDS:
        raise BackendError(
            f"there is no backend {name!r} for GPUs in this version; use one of: auto,"
            f" {', '.join(GPU_BACKENDS)}"
        )
    if name == "auto":
        chosen, reasons = _first_that_runs(GPU_BACKENDS, load_gpu_backend)
        for reason in reasons:
            warnings.warn(f"{reason}; {chosen.name} is used instead", stacklevel=2)
        return chosen
    backend: GpuBackend = _load(name)
    return backend


def _load(name: str) -> Any:
    try:
        return importlib.import_module(f".{name}", __package__).load()
    except ImportError as error:
        # A module that is there and cannot be loaded says why itself.
        no_cuda = name == "cuda" and importlib.util.find_spec("._cuda", _PACKAGE) is None
        reason = _not_built() if name == "cpu" else _NO_CUDA if no_cuda else None
        raise BackendError(f"backend {name} cannot run here: {reason or error}") from error


def _not_built() -> str | None:
    """What to do where this package is a source tree without kernels, which hides an installed package."""
    package = Path(__file__).resolve().parents[1]
    built = importlib.util.find_spec("._cpu", _PACKAGE) is not None
    if built or not (package.parent / "setup.py").exists():
        return None
    return (
        f"the kernels are not built in {package}, which Python found instead of the installed package:"
        " run from another directory, or `pip install -e .`"
    )


def first_that_runs() -> tuple[Backend, tuple[str, ...]]:
    """What `auto` takes, and why none of those before it. Raises BackendError."""
    return _first_that_runs(BACKENDS, load_backend)


_Loaded = TypeVar("_Loaded")


def _first_that_runs(
    names: Sequence[str], load: Callable[[str], _Loaded]
) -> tuple[_Loaded, tuple[str, ...]]:
    reasons: list[str] = []
    for name in names:
        try:
            backend = load(name)
        except BackendError as error:
            if name in BACKENDS and not isinstance(error.__cause__, ImportError):
                raise  # it is here, and was asked for what it cannot do
            reasons.append(str(error))
            continue
        return backend, tuple(reasons)
    raise BackendError("; ".join(reasons))


def backend_states() -> dict[str, str]:
    """For each backend, what it runs on, or why it cannot run."""
    states = {}
    for names, load in ((BACKENDS, load_backend), (GPU_BACKENDS, load_gpu_backend)):
        for name in names:
            try:
                states[name] = load(name).description
            except BackendError as error:
                states[name] = f"absent: {error}"
    return states
