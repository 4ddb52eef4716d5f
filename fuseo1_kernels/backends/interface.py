"""The protocols that backends implement: the two ops in host memory, on files, and in a GPU's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from .arrays import Array, Buffer, DType, Numbers
from .contract import (
    SURVEY_BYTES,
    AverageParams,
    DecodeParams,
    FoldParams,
    FuseParams,
    Request,
    Select,
)
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
    """A survey of a tensor that comes in chunks. Feed it pass after pass until it is `done`."""

    @property
    def done(self) -> bool: ...

    def sample_runs(self, most_runs: int | None = None) -> tuple[Sequence[int], int]:
        """The starts and the common length of the runs to sample before the first pass; no starts: no sample.

        With `most_runs`, at most that many runs, spread evenly.
        """

    def sample(self, inputs: Sequence[Array]) -> None:
        """Take the sampled runs back to back, or nothing if there are none, and begin the first pass."""

    def update(self, inputs: Sequence[Array], offset: int) -> None:
        """Take the chunk that starts at flat index `offset`, a multiple of 256; base first."""

    def sample_files(self, files: Sequence[FileRange], most_runs: int, scratch: Buffer) -> None:
        """As `sample`, reading the runs of `sample_runs(most_runs)` from files. Raises InputUnreadable."""

    def update_files(
        self, files: Sequence[FileRange], offset: int, count: int, scratch: Buffer
    ) -> None:
        """As `update`, reading the inputs into `scratch` piece by piece. Raises InputUnreadable."""

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
        """Survey whole inputs in at most `max_bytes` of its own memory; it may also overwrite `lent`."""

    def fuse(
        self, inputs: Sequence[Array], params: FuseParams, out: Array, offset: int, threads: int
    ) -> int:
        """Write to `out`, whose flat indices begin at `offset`; return how many elements are infinite or NaN."""


class Folder(Protocol):
    """Adds low-rank adapters to weights, in the CPU's memory (csrc/include/fuseo1/fold.h)."""

    def widen(
        self, matrix: Array, rows: int, columns: int, out: Array, *, transposed: bool
    ) -> None:
        """Write a matrix of `rows` x `columns`, or its transpose, to `out` in fp32."""

    def fold(
        self, params: FoldParams, weights: Array, start: int, out: Array, threads: int
    ) -> None:
        """Write the elements from flat index `start` on to `out`, in fp32. `weights` has as many; it may be `out`."""

    def add_squares(
        self, params: FoldParams, weights: Array, squares: Numbers, threads: int
    ) -> None:
        """Set the sums of squares of these whole rows or, by column, add the rows' squares to those of columns."""

    def finish_factors(self, magnitudes: Array, squares: Numbers) -> None:
        """Replace sums of squares by DoRA's factors, the magnitudes divided by their square roots."""


class Backend(Ops, Protocol):
    """The ops in the CPU's memory, and on files; and those that averages and computed inputs need."""

    @property
    def folder(self) -> Folder: ...

    def decode(
        self, params: DecodeParams, codes: Buffer, start: int, out: Array, threads: int
    ) -> None:
        """Write the elements from flat index `start` on to `out`, in fp32; `codes` begins with theirs."""

    def surveyor(
        self,
        targets: int,
        numel: int,
        request: Request,
        threads: int,
        max_bytes: int,
        room: Buffer | None = None,
    ) -> Surveyor:
        """A survey of `targets` targets of `numel` elements, in at most `max_bytes` of its own memory besides `room`.

        Successive surveys can share a room, because fresh memory costs time to clear. The masks that a result
        says were kept are valid until the next survey uses the room.
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
        """As `fuse`, reading the inputs into `scratch` piece by piece. Raises InputUnreadable."""

    def average(
        self,
        inputs: Sequence[Array],
        params: AverageParams,
        sums: Buffer,
        out: Array,
        threads: int,
    ) -> int:
        """Average at most MAX_AVERAGED inputs of as many elements as `out` has, after those of earlier calls.

        The first call begins `sums`, fp64, which hold the mean's sums until the last one has written `out`. Return how
        many elements of it are infinite or NaN; 0 if the call is not the last.
        """

    def average_files(
        self,
        files: Sequence[FileRange],
        params: AverageParams,
        sums: Buffer,
        out: Array,
        offset: int,
        threads: int,
        scratch: Buffer,
    ) -> int:
        """As `average`, of the inputs' elements from `offset` on, read into `scratch`. Raises InputUnreadable."""


@dataclass(frozen=True)
class OnDevice:
    """A survey's result and the parameters for fuse, as torch tensors in a GPU's memory."""

    result: Any
    params: Any
    targets: int


@dataclass(frozen=True)
class Room:
    """A GPU's memory for a survey: torch tensors of bytes, aligned to 256.

    Their sizes are `workspace_bytes`, `result_bytes` and `params_bytes`. `work` is free again when the stream has
    passed the survey; `result` and `params` hold its outcome.
    """

    work: Any
    result: Any
    params: Any


class GpuBackend(Ops, Protocol):
    """The ops in a GPU's memory. Methods named `enqueue...` only enqueue on the current stream and do not wait."""

    @property
    def max_targets(self) -> int: ...

    @property
    def result_bytes(self) -> int: ...

    @property
    def params_bytes(self) -> int: ...

    def workspace_bytes(self, targets: int, numel: int, select_topk: float) -> int: ...

    def survey_bytes(self, targets: int, numel: int, request: Request) -> int:
        """The most bytes that `survey` holds of torch's allocator at once for a request other than SCE's.

        Raises BackendError if there is no such survey.
        """

    def fuse_bytes(self, targets: int, numel: int, selects: Sequence[Select]) -> int:
        """The same for `fuse` with these selections, for parameters other than SCE's."""

    def enqueue_survey(
        self, inputs: Sequence[Array], select_topk: float, variant: str, room: Room | None = None
    ) -> OnDevice:
        """Survey, and derive SCE's parameters, into `room` or into memory that the backend allocates."""

    def enqueue_fuse(
        self, inputs: Sequence[Array], survey: OnDevice, out: Array, offset: int = 0
    ) -> None: ...

    def place(self, inputs: Sequence[Array], params: FuseParams) -> OnDevice:
        """Copy `params` to the inputs' device, in the form that a survey leaves; the result is all 0."""

    def numbers(self, survey: OnDevice) -> tuple[Any, Any]:
        """A survey and its parameters as fp64 tensors on the device, in the layout of torch_ops."""

    def from_numbers(self, params: Any) -> OnDevice:
        """Parameters in that layout, in the form that a survey leaves; the result is all 0."""

    def result(self, survey: OnDevice) -> tuple[SceResult, int]:
        """The survey, and how many of fuse's outputs were infinite or NaN. Waits for the device."""

    def pack_params(self, params: FuseParams) -> bytes:
        """`params` as the bytes that `enqueue_fuse` takes in `OnDevice.params`, beside a `result` of zeros."""

    def unpack_result(self, raw: bytes, targets: int) -> tuple[SceResult, int]:
        """As `result`, from the bytes of `OnDevice.result`."""


class SmallBackend(GpuBackend, Protocol):
    """A GPU backend that also merges many small tensors in one launch."""

    @property
    def most_small(self) -> int:
        """The most elements of a small tensor."""

    def enqueue_small(
        self,
        tensors: Sequence[Sequence[Array]],
        outs: Sequence[Array],
        select_topk: float,
        variant: str,
    ) -> OnDevice:
        """Survey and fuse tensors, all of as many targets, in one launch."""

    def results(self, surveys: OnDevice) -> list[tuple[SceResult, int]]:
        """`result` of every tensor of a launch."""


def can_average(backend: Ops) -> TypeGuard[Backend]:
    """Whether `backend` averages, which those for a GPU's memory do not."""
    return hasattr(backend, "average")


def can_enqueue(backend: Ops) -> TypeGuard[GpuBackend]:
    """Whether `backend` is one for a GPU's memory."""
    return hasattr(backend, "enqueue_survey")


def can_enqueue_small(backend: Ops) -> TypeGuard[SmallBackend]:
    return hasattr(backend, "enqueue_small")
