"""The protocols that backends implement: the two ops in host memory, on files, and in a GPU's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from .arrays import Array, Buffer, DType
from .contract import NOTHING as NOTHING
from .contract import SURVEY_BYTES
from .contract import Cut as Cut
from .contract import FuseParams as FuseParams
from .contract import Kept as Kept
from .contract import Request as Request
from .contract import Select as Select
from .results import SceResult, SurveyResult


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
    """A survey of a tensor that comes in chunks. ReadAhead it while it is not `done`, pass after pass."""

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

    def result(self, survey: OnDevice) -> tuple[SceResult, int]:
        """Wait for what was enqueued: the survey, and how many outputs were infinite or NaN."""

    def pack_params(self, params: FuseParams) -> bytes:
        """What `enqueue_fuse` wants in `OnDevice.params`; its `result` is zeros then."""

    def unpack_result(self, raw: bytes, targets: int) -> tuple[SceResult, int]:
        """As `result`, from the bytes of `OnDevice.result`."""


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

    def results(self, surveys: OnDevice) -> list[tuple[SceResult, int]]:
        """`result` of every tensor of a launch."""


def can_enqueue(backend: Ops) -> TypeGuard[GpuBackend]:
    """Whether `backend` is one for a GPU's memory."""
    return hasattr(backend, "enqueue_survey")


def can_enqueue_small(backend: Ops) -> TypeGuard[SmallBackend]:
    return hasattr(backend, "enqueue_small")
