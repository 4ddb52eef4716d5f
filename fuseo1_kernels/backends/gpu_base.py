"""Shared by the GPU backends: blocking ops, built from the ops that only enqueue, and checks of arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import BackendError
from .arrays import Array
from .contract import SURVEY_BYTES, FuseParams, Request, RowFactors
from .interface import GpuBackend, OnDevice, Room
from .results import SceResult, SurveyResult

# torch's allocator rounds sizes up to multiples of it.
_UNIT = 512


class GpuBase(GpuBackend):
    """The ops that do not depend on the kind of kernels."""

    def survey(
        self,
        inputs: Sequence[Array],
        request: Request,
        threads: int,
        max_bytes: int = SURVEY_BYTES,
        lent: Array | None = None,
    ) -> SurveyResult:
        """SCE's survey; the backends override it for others. The arguments after `request` are for CPU backends."""
        assert isinstance(request, int | float)
        return self.result(self.enqueue_survey(inputs, request, "fuseo1"))[0]

    def fuse(
        self, inputs: Sequence[Array], params: FuseParams, out: Array, offset: int, threads: int
    ) -> int:
        survey = self.place(inputs, params)
        self.enqueue_fuse(inputs, survey, out, offset)
        return self.result(survey)[1]

    def result(self, survey: OnDevice) -> tuple[SceResult, int]:
        [only] = self.results(survey)
        return only

    def results(self, surveys: OnDevice) -> list[tuple[SceResult, int]]:
        """`result` of every tensor of a launch."""
        raw, size = surveys.result.cpu().numpy().tobytes(), self.result_bytes
        found = []
        for start in range(0, len(raw), size):
            found.append(self.unpack_result(raw[start : start + size], surveys.targets))
        return found

    def make_room(self, inputs: Sequence[Array], select_topk: float) -> Room:
        """Memory on the inputs' device for a survey of them."""
        needed = self.workspace_bytes(len(inputs) - 1, inputs[0].numel, select_topk)
        sizes = (needed, self.result_bytes, self.params_bytes)
        device = device_of(inputs)
        return Room(*(torch.empty(n, dtype=torch.uint8, device=device) for n in sizes))

    def check_inputs(self, inputs: Sequence[Array], least: int = 1) -> None:
        """Raises BackendError unless sizes are equal and there are `least` to max_targets targets."""
        if len({a.numel for a in inputs}) != 1:
            raise BackendError("base and targets must have the same number of elements")
        if not least < len(inputs) <= self.max_targets + 1:
            raise BackendError(
                f"{least} to {self.max_targets} targets are supported on a GPU, not {len(inputs) - 1}"
            )


def check_is_sce(backend: str, params: FuseParams) -> None:
    """Raises BackendError unless `params` can be enqueued: only SCE's can."""
    if not params.is_sce:
        raise BackendError(
            f"backend {backend} enqueues merges by sce alone: fuse takes these parameters, and waits"
        )


def check_factors(rows: RowFactors, numel: int) -> None:
    """Raises BackendError unless `rows` are those of a whole tensor of `numel` elements."""
    if rows.row < 1 or rows.numel != numel:
        raise BackendError(f"factors for {rows.numel} elements, but there are {numel}")


def check_targets(asked: int, targets: int, what: str) -> None:
    """Raises BackendError unless a request is for as many targets as there are."""
    if asked != targets:
        raise BackendError(f"{what} for {asked} targets, but there are {targets}")


def check_output(out: Array, inputs: Sequence[Array]) -> None:
    """Raises BackendError unless `out` has as many elements as each input."""
    if out.numel != inputs[0].numel:
        raise BackendError("the output must have as many elements as the inputs")


def allocated(*sizes: int) -> int:
    """Bytes of device memory that torch's allocator uses for tensors of these sizes, in bytes."""
    return sum(-(-size // _UNIT) * _UNIT for size in sizes)


def device_of(inputs: Sequence[Array]) -> torch.device:
    device: torch.device = inputs[0].owner.device
    return device


def upload(packed: bytes, device: torch.device) -> torch.Tensor:
    """`packed` as a [bytes] uint8 tensor on the device, without waiting for it."""
    # The driver has read pageable memory when the call returns, so `host` need not be kept alive.
    host = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    return host.to(device, non_blocking=True)
