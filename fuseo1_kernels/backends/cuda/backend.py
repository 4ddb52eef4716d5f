"""The CUDA backend: survey and fuse on NVIDIA GPUs, enqueued on the caller's stream (csrc/include/fuseo1/cuda.h)."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch

from ...errors import BackendError
from ..arrays import Array
from ..contract import (
    SURVEY_BYTES,
    Divergences,
    FuseParams,
    Gram,
    Magnitudes,
    Norms,
    Overlaps,
    Request,
    Select,
)
from ..gpu_base import GpuBase, allocated, check_is_sce, check_output, device_of, upload
from ..interface import OnDevice, Room
from ..results import SceResult, SurveyResult
from .surveys import (
    NativeSelects,
    selects_sizes,
    sizes_of,
    stream_of,
    survey_divergences,
    survey_gram,
    survey_magnitudes,
    survey_norms,
    survey_overlaps,
)

# Bytes of the count of outputs that are infinite or NaN.
_WRITTEN = 8


class CudaBackend(GpuBase):
    """The two ops on tensors in the memory of one device. `kernels` is the native module.

    `survey` and `fuse` wait for the device, because they return numbers. `enqueue_survey` and
    `enqueue_fuse` do not, and can be captured into a graph: they launch kernels, clear device memory,
    and allocate through torch, whose allocator supports captures. Call them once before a capture, so
    that the driver has loaded the kernels. `place` and `enqueue_small` copy from the host and cannot be captured.
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

    def survey_bytes(self, targets: int, numel: int, request: Request) -> int:
        return allocated(*sizes_of(self._kernels, numel, request))

    def fuse_bytes(self, targets: int, numel: int, selects: Sequence[Select]) -> int:
        return allocated(_WRITTEN, *selects_sizes(self._kernels, numel, selects))

    @property
    def description(self) -> str:
        return f"{torch.cuda.get_device_name()}, kernels for {self._kernels.ARCHITECTURES}"

    def place(self, inputs: Sequence[Array], params: FuseParams) -> OnDevice:
        """Copy `params` to the inputs' device without waiting for it."""
        return self._for_fuse(upload(self.pack_params(params), device_of(inputs)), len(inputs) - 1)

    def _for_fuse(self, params: torch.Tensor, targets: int) -> OnDevice:
        result = torch.zeros(self._kernels.RESULT_BYTES, dtype=torch.uint8, device=params.device)
        return OnDevice(result, params, targets)

    def survey(
        self,
        inputs: Sequence[Array],
        request: Request,
        threads: int,
        max_bytes: int = SURVEY_BYTES,
        lent: Array | None = None,
    ) -> SurveyResult:
        if isinstance(request, Magnitudes):
            return survey_magnitudes(self._kernels, inputs, self._operands(inputs), request)
        if isinstance(request, Norms):
            return survey_norms(self._kernels, inputs, self._operands(inputs), request)
        if isinstance(request, Overlaps):
            return survey_overlaps(self._kernels, inputs, self._operands(inputs), request)
        if isinstance(request, Gram):
            return survey_gram(self._kernels, inputs, self._operands(inputs), request)
        if isinstance(request, Divergences):
            return survey_divergences(self._kernels, inputs, self._operands(inputs), request)
        return super().survey(inputs, request, threads)

    def enqueue_survey(
        self, inputs: Sequence[Array], select_topk: float, variant: str, room: Room | None = None
    ) -> OnDevice:
        """Survey, and derive SCE's parameters, on the current stream of the inputs' device."""
        operands = self._operands(inputs)
        if room is None:
            room = self.make_room(inputs, select_topk)
        with stream_of(device_of(inputs)) as stream:
            self._kernels.survey(
                operands,
                inputs[0].numel,
                select_topk,
                variant == "mergekit",
                room.work.data_ptr(),
                room.work.nbytes,
                room.result.data_ptr(),
                room.params.data_ptr(),
                stream,
            )
        return OnDevice(room.result, room.params, len(inputs) - 1)

    def enqueue_fuse(
        self, inputs: Sequence[Array], survey: OnDevice, out: Array, offset: int = 0
    ) -> None:
        """Fuse by what `survey` left, on the current stream of the inputs' device."""
        operands = self._operands(inputs)
        check_output(out, inputs)
        with stream_of(device_of(inputs)) as stream:
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

    def fuse(
        self, inputs: Sequence[Array], params: FuseParams, out: Array, offset: int, threads: int
    ) -> int:
        """By any parameters. SCE's have their own kernels, which take only a floor_divisor >= 0."""
        if params.is_sce and params.floor_divisor >= 0 and len(inputs) > 1:
            return super().fuse(inputs, params, out, offset, threads)
        kernels, device = self._kernels, device_of(inputs)
        operands = self._operands(inputs, least=0)
        check_output(out, inputs)
        written = torch.zeros(1, dtype=torch.int64, device=device)
        selects = NativeSelects(kernels, params.selects, offset, out.numel, device)
        elections = {
            "sum": kernels.ELECT_SUM,
            "weighted": kernels.ELECT_WEIGHTED,
            "count": kernels.ELECT_COUNT,
            "none": kernels.ELECT_NONE,
        }
        with stream_of(device) as stream:
            kernels.fuse_general(
                operands,
                weights=params.weights,
                shares=params.shares or (),
                alone=params.alone or (),
                elect=elections[params.elect],
                divisor=params.divisor or 0.0,
                floor_divisor=params.floor_divisor,
                scale=params.scale,
                base_scale=params.base_scale,
                selects=selects.each,
                masked=params.masked,
                threshold=params.threshold,
                tie_limit=params.tie_limit,
                offset=offset,
                count=out.numel,
                out=out.address,
                out_dtype=out.dtype.abi,
                written=written.data_ptr(),
                room=selects.room,
                stream=stream,
            )
        return int(written)

    def enqueue_small(
        self,
        tensors: Sequence[Sequence[Array]],
        outs: Sequence[Array],
        select_topk: float,
        variant: str,
    ) -> OnDevice:
        """Survey and fuse many tensors in one launch: at most 65,536 elements each, all of as many targets."""
        if not tensors or len({len(inputs) for inputs in tensors}) != 1:
            raise BackendError("a launch takes one tensor or more, all of as many targets")
        for inputs, out in zip(tensors, outs, strict=True):
            if out.numel != inputs[0].numel or out.numel > self.most_small:
                raise BackendError(
                    f"an output of {out.numel} elements for inputs of {inputs[0].numel};"
                    f" a launch of many takes at most {self.most_small} each"
                )
        kernels, device, targets = self._kernels, device_of(tensors[0]), len(tensors[0]) - 1
        packed = b"".join(
            kernels.pack_tensor(self._operands(inputs), out.numel, out.address, out.dtype.abi)
            for inputs, out in zip(tensors, outs, strict=True)
        )
        table = upload(packed, device)
        room = len(tensors) * kernels.RESULT_BYTES
        results = torch.empty(room, dtype=torch.uint8, device=device)
        with stream_of(device) as stream:
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
        """The structs of cuda.h as fp64 tensors in torch_ops' layout, copied on the device."""
        n, most = survey.targets, self.max_targets
        i64, i32, f64 = map(survey.result.view, (torch.int64, torch.int32, torch.float64))
        nonfinite = i64[4 + most : 4 + most + n + 2]
        learned = torch.cat([i64[:2], i32[6:7], i64[2:3], f64[4 : 4 + n], nonfinite])
        f64, i32, i64 = map(survey.params.view, (torch.float64, torch.int32, torch.int64))
        mask = i32[2 * most + 2 : 2 * most + 4]
        return learned, torch.cat([f64[:n], f64[most : most + 1], mask, i64[-1:]])

    def from_numbers(self, params: torch.Tensor) -> OnDevice:
        """The inverse of `numbers`, for the parameters."""
        n, most = params.numel() - 4, self.max_targets
        packed = torch.zeros(self._kernels.PARAMS_BYTES, dtype=torch.uint8, device=params.device)
        f64, i32, i64 = map(packed.view, (torch.float64, torch.int32, torch.int64))
        f64[:n] = params[:n]
        f64[most] = params[n]
        i32[2 * most + 2 : 2 * most + 4] = params[n + 1 : n + 3]
        i64[-1] = params[n + 3]
        return self._for_fuse(packed, n)

    def pack_params(self, params: FuseParams) -> bytes:
        check_is_sce(self.name, params)
        packed: bytes = self._kernels.pack_params(
            params.weights, params.floor_divisor, params.masked, params.threshold, params.tie_limit
        )
        return packed

    def unpack_result(self, raw: bytes, targets: int) -> tuple[SceResult, int]:
        fields, written = self._kernels.unpack_result(raw, targets)
        return SceResult(**fields), written

    def _operands(self, inputs: Sequence[Array], least: int = 1) -> list[tuple[int, int]]:
        self.check_inputs(inputs, least)
        return [(a.address, a.dtype.abi) for a in inputs]


def load() -> CudaBackend:
    """The backend. Raises BackendError unless there is a GPU that the kernels have code for."""
    from .. import _cuda

    problem = _cuda.problem()
    if problem:
        raise BackendError(f"backend cuda cannot run here: {problem}")
    if not torch.cuda.is_available():
        raise BackendError("backend cuda cannot run here: torch was built without CUDA")
    return CudaBackend(_cuda)
