"""The CUDA backend: survey and fuse on NVIDIA GPUs, enqueued on the caller's stream (csrc/include/fuseo1/cuda.h)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch

from ..arrays import Array
from ..errors import BackendError
from . import SURVEY_BYTES, OnDevice, Room, SurveyResult
from .requests import FuseParams, Request
from .sce_only import check_is_sce, select_topk_of


class CudaBackend:
    """The two ops on tensors in the memory of one device. `kernels` is the native module.

    `survey` and `fuse` wait for the device, because they return numbers. `enqueue_survey` and
    `enqueue_fuse` do not, and can be captured into a graph: they launch kernels, clear memory of the
    device and allocate by torch, whose allocator serves captures. Call them once before a capture, so
    that the driver has loaded the kernels. `place` and `enqueue_small` copy from the host: not to be captured.
    """

    name = "cuda"

    def __init__(self, kernels: ModuleType) -> None:
        self._kernels = kernels

    @property
    def max_targets(self) -> int:
        return int(self._kernels.MAX_TARGETS)

    @property
    def most_small(self) -> int:
        return int(self._kernels.SMALL)

    @property
    def result_bytes(self) -> int:
        return int(self._kernels.RESULT_BYTES)

    @property
    def params_bytes(self) -> int:
        return int(self._kernels.PARAMS_BYTES)

    def workspace_bytes(self, targets: int, numel: int, select_topk: float) -> int:
        return int(self._kernels.workspace_bytes(targets, numel, select_topk))

    @property
    def description(self) -> str:
        return f"{torch.cuda.get_device_name()}, kernels for {self._kernels.ARCHITECTURES}"

    def survey(
        self,
        inputs: Sequence[Array],
        request: Request,
        threads: int,
        max_bytes: int = SURVEY_BYTES,
    ) -> SurveyResult:
        """`threads` and `max_bytes` are the CPU's concern."""
        select_topk = select_topk_of(self.name, request)
        return self.result(self.enqueue_survey(inputs, select_topk, "fuseo1"))[0]

    def fuse(
        self, inputs: Sequence[Array], params: FuseParams, out: Array, offset: int, threads: int
    ) -> int:
        survey = self.place(inputs, params)
        self.enqueue_fuse(inputs, survey, out, offset)
        return self.result(survey)[1]

    def place(self, inputs: Sequence[Array], params: FuseParams) -> OnDevice:
        """Copy `params` to the inputs' device without waiting for it."""
        return self._for_fuse(_upload(self.pack_params(params), _device(inputs)), len(inputs) - 1)

    def _for_fuse(self, params: torch.Tensor, targets: int) -> OnDevice:
        result = torch.zeros(self._kernels.RESULT_BYTES, dtype=torch.uint8, device=params.device)
        return OnDevice(result, params, targets)

    def enqueue_survey(
        self, inputs: Sequence[Array], select_topk: float, variant: str, room: Room | None = None
    ) -> OnDevice:
        """Survey, and derive SCE's parameters, on the current stream of the inputs' device."""
        operands, targets, numel = self._operands(inputs), len(inputs) - 1, inputs[0].numel
        device, kernels = _device(inputs), self._kernels
        if room is None:
            needed = self.workspace_bytes(targets, numel, select_topk)
            sizes = (needed, self.result_bytes, self.params_bytes)
            room = Room(*(torch.empty(n, dtype=torch.uint8, device=device) for n in sizes))
        with _stream(device) as stream:
            kernels.survey(
                operands,
                numel,
                select_topk,
                variant == "mergekit",
                room.work.data_ptr(),
                room.work.nbytes,
                room.result.data_ptr(),
                room.params.data_ptr(),
                stream,
            )
        return OnDevice(room.result, room.params, targets)

    def enqueue_fuse(
        self, inputs: Sequence[Array], survey: OnDevice, out: Array, offset: int = 0
    ) -> None:
        """Fuse by what `survey` left, on the current stream of the inputs' device."""
        operands = self._operands(inputs)
        if out.numel != inputs[0].numel:
            raise BackendError("the output must have as many elements as the inputs")
        with _stream(_device(inputs)) as stream:
            self._kernels.fuse(
                survey.params.data_ptr(),
                operands,
                offset,
                out.numel,
                out.address,
                out.dtype.abi,
                survey.result.data_ptr(),
                stream,
            )

    def enqueue_small(
        self,
        tensors: Sequence[Sequence[Array]],
        outs: Sequence[Array],
        select_topk: float,
        variant: str,
    ) -> OnDevice:
        """Survey and fuse many tensors of at most 65,536 elements and as many targets in one launch."""
        if not tensors or len({len(inputs) for inputs in tensors}) != 1:
            raise BackendError("a launch takes one tensor or more, all of as many targets")
        for inputs, out in zip(tensors, outs, strict=True):
            if out.numel != inputs[0].numel or out.numel > self.most_small:
                raise BackendError(
                    f"an output of {out.numel} elements for inputs of {inputs[0].numel};"
                    f" a launch of many takes at most {self.most_small} each"
                )
        kernels, device, targets = self._kernels, _device(tensors[0]), len(tensors[0]) - 1
        packed = b"".join(
            kernels.pack_tensor(self._operands(inputs), out.numel, out.address, out.dtype.abi)
            for inputs, out in zip(tensors, outs, strict=True)
        )
        table = _upload(packed, device)
        room = len(tensors) * kernels.RESULT_BYTES
        results = torch.empty(room, dtype=torch.uint8, device=device)
        with _stream(device) as stream:
            kernels.merge_small(
                table.data_ptr(),
                len(tensors),
                targets,
                select_topk,
                variant == "mergekit",
                results.data_ptr(),
                stream,
            )
        return OnDevice(results, table, targets)

    def numbers(self, survey: OnDevice) -> tuple[torch.Tensor, torch.Tensor]:
        """The structs of cuda.h as fp64 tensors of torch_ops' layout, by copies on the device."""
        n, most = survey.targets, self.max_targets
        i64, i32, f64 = map(survey.result.view, (torch.int64, torch.int32, torch.float64))
        nonfinite = i64[4 + most : 4 + most + n + 2]
        learned = torch.cat([i64[:2], i32[6:7], i64[2:3], f64[4 : 4 + n], nonfinite])
        f32, i32, i64 = map(survey.params.view, (torch.float32, torch.int32, torch.int64))
        mask = i32[most + 1 : most + 3]
        return learned, torch.cat([f32[:n].double(), f32[most : most + 1], mask, i64[-1:]])

    def from_numbers(self, params: torch.Tensor) -> OnDevice:
        """The inverse, of the parameters."""
        n, most = params.numel() - 4, self.max_targets
        packed = torch.zeros(self._kernels.PARAMS_BYTES, dtype=torch.uint8, device=params.device)
        f32, i32, i64 = map(packed.view, (torch.float32, torch.int32, torch.int64))
        f32[:n] = params[:n]
        f32[most] = params[n]
        i32[most + 1 : most + 3] = params[n + 1 : n + 3]
        i64[-1] = params[n + 3]
        return self._for_fuse(packed, n)

    def result(self, survey: OnDevice) -> tuple[SurveyResult, int]:
        [only] = self.results(survey)
        return only

    def results(self, surveys: OnDevice) -> list[tuple[SurveyResult, int]]:
        """`result` of every tensor of a launch."""
        raw, size = surveys.result.cpu().numpy().tobytes(), self._kernels.RESULT_BYTES
        found = []
        for start in range(0, len(raw), size):
            found.append(self.unpack_result(raw[start : start + size], surveys.targets))
        return found

    def pack_params(self, params: FuseParams) -> bytes:
        check_is_sce(self.name, params)
        packed: bytes = self._kernels.pack_params(
            params.weights, params.floor_divisor, params.masked, params.threshold, params.tie_limit
        )
        return packed

    def unpack_result(self, raw: bytes, targets: int) -> tuple[SurveyResult, int]:
        fields, written = self._kernels.unpack_result(raw, targets)
        return SurveyResult(**fields), written

    def _operands(self, inputs: Sequence[Array]) -> list[tuple[int, int]]:
        if len({a.numel for a in inputs}) != 1:
            raise BackendError("base and targets must have the same number of elements")
        if not 2 <= len(inputs) <= self.max_targets + 1:
            raise BackendError(
                f"1 to {self.max_targets} targets are supported on a GPU, not {len(inputs) - 1}"
            )
        return [(a.address, a.dtype.abi) for a in inputs]


def _device(inputs: Sequence[Array]) -> torch.device:
    device: torch.device = inputs[0].owner.device
    return device


def _upload(packed: bytes, device: torch.device) -> torch.Tensor:
    # From pageable memory, which the driver has read when the call returns: nothing need be kept for it.
    host = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    return host.to(device, non_blocking=True)


@contextmanager
def _stream(device: torch.device) -> Iterator[int]:
    """Make `device` the current one, and yield its current stream; 0 for the host (tests)."""
    if device.type != "cuda":
        yield 0
        return
    with torch.cuda.device(device):
        yield torch.cuda.current_stream(device).cuda_stream


def load() -> CudaBackend:
    """The backend, if there is a GPU that it has code for."""
    from .. import _cuda

    problem = _cuda.problem()
    if problem:
        raise BackendError(f"backend cuda cannot run here: {problem}")
    if not torch.cuda.is_available():
        raise BackendError("backend cuda cannot run here: torch was built without CUDA")
    return CudaBackend(_cuda)
