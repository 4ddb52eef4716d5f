"""The backend's class: checks arguments, chooses a config, launches on the caller's stream."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton

from ...errors import BackendError
from ..arrays import Array
from ..contract import SURVEY_BYTES, FuseParams, Request, Select
from ..gpu_base import GpuBase, check_is_sce, check_output, device_of, upload
from ..interface import OnDevice, Room
from ..results import SceResult, SurveyResult
from . import state as places
from .launch_fuse import fuse_bytes, launch_fuse_general
from .launch_sce import Params, launch_fuse, launch_params, launch_survey, workspace_bytes
from .launch_surveys import survey_bytes, survey_general
from .state import MOST_TARGETS, PARAMS_BYTES, RESULT, place
from .tuning import FOR_INTERPRETER, Config, Tuner, general_config
from .workspace import needs_scores

#: Whether the kernels run in Triton's interpreter, on the CPU's tensors: TRITON_INTERPRET=1 when they are imported.
INTERPRETED = bool(triton.knobs.runtime.interpret)

_BY_NAME = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# A candidate has 32 bits for its place in one of 32 stripes.
_MOST = 1 << 36


def tensor_of(array: Array) -> torch.Tensor:
    """The array as a flat tensor in its owner's memory. Raises BackendError if it is not aligned to its dtype."""
    dtype = _BY_NAME[array.dtype.name]
    owner: torch.Tensor = array.owner
    if array.numel == 0:
        return torch.empty(0, dtype=dtype, device=owner.device)
    start, nbytes = array.address - owner.data_ptr(), array.numel * array.dtype.size
    if array.address % array.dtype.size:
        raise BackendError(f"an array of {array.dtype.name} must begin at a multiple of its size")
    memory = owner.detach().reshape(-1).view(torch.uint8)
    return memory[start : start + nbytes].view(dtype)


def pointers(inputs: Sequence[Array]) -> tuple[torch.Tensor, ...]:
    """The inputs as kernels take them: flat tensors, bf16 as int16."""
    tensors = [tensor_of(a) for a in inputs]
    return tuple(t.view(torch.int16) if t.dtype == torch.bfloat16 else t for t in tensors)


class TritonBackend(GpuBase):
    """The two ops on tensors in the memory of one GPU, or in the CPU's for the interpreter.

    `survey` and `fuse` wait for the device, because they return numbers. `enqueue_survey` and `enqueue_fuse` do
    not, except while they are tuned on the first large tensor of a kind; with a `config` they never wait. They can
    be captured into a graph once an earlier call has compiled each kernel.
    """

    name = "triton"
    max_targets = MOST_TARGETS
    result_bytes = 8 * RESULT
    params_bytes = PARAMS_BYTES

    def __init__(self, config: Config | None = None) -> None:
        self._tuner = Tuner(config or (FOR_INTERPRETER if INTERPRETED else None))

    @property
    def description(self) -> str:
        device = "interpreter" if INTERPRETED else torch.cuda.get_device_name()
        return f"{device}, Triton {triton.__version__}"

    def survey(
        self,
        inputs: Sequence[Array],
        request: Request,
        threads: int,
        max_bytes: int = SURVEY_BYTES,
        lent: Array | None = None,
    ) -> SurveyResult:
        """SCE's survey uses enqueue_survey, the others have their own kernels."""
        if isinstance(request, int | float):
            return super().survey(inputs, request, threads)
        self.check_inputs(inputs)
        data, numel = pointers(inputs), inputs[0].numel
        config = self._tuner.fixed or general_config(len(inputs) - 1)
        with _current(_device(inputs)):
            return survey_general(data, numel, request, config)

    def place(self, inputs: Sequence[Array], params: FuseParams) -> OnDevice:
        """Copy `params` to the inputs' device without waiting for it."""
        self.check_inputs(inputs)
        given = upload(self.pack_params(params), _device(inputs)).view(torch.float64)
        return self._for_fuse(given[: len(inputs) + 3], params.masked, params.floor_divisor != 0.0)

    def pack_params(self, params: FuseParams) -> bytes:
        """fp64 numbers in torch_ops' layout."""
        check_is_sce(self.name, params)
        mask = (params.masked, params.threshold, params.tie_limit)
        numbers = (*params.weights, params.floor_divisor, *mask)
        return struct.pack(f"{len(numbers)}d", *numbers).ljust(self.params_bytes, b"\0")

    def numbers(self, survey: OnDevice) -> tuple[torch.Tensor, torch.Tensor]:
        """A survey and its parameters as fp64 tensors in torch_ops' layout, copied on the device."""
        n, params = survey.targets, survey.params
        found: torch.Tensor = survey.result

        def counts(first: object, many: int) -> torch.Tensor:
            return found[place(first) :][:many].double()

        energy = found.view(torch.float64)[place(places.R_ENERGY) :][:n]
        learned = torch.cat(
            [counts(places.R_NONZERO, 4), energy, counts(places.R_NONFINITE, n + 2)]
        )
        floor = (
            params.numbers[place(places.P_FLOOR) :][:1] if params.floored else energy.new_zeros(1)
        )
        masked = energy.new_full((1,), params.masked)
        mask = counts(places.R_THRESHOLD, 2)
        return learned, torch.cat([params.numbers[:n], floor, masked, mask])

    def from_numbers(self, params: torch.Tensor) -> OnDevice:
        """The inverse of `numbers`, for the parameters."""
        return self._for_fuse(params, masked=True, floored=True)

    def _for_fuse(self, given: torch.Tensor, masked: bool, floored: bool) -> OnDevice:
        result = torch.zeros(RESULT, dtype=torch.int64, device=given.device)
        with _current(given.device):
            return OnDevice(result, launch_params(given, masked, floored), given.numel() - 4)

    def workspace_bytes(self, targets: int, numel: int, select_topk: float) -> int:
        return workspace_bytes(targets, numel, select_topk)

    def survey_bytes(self, targets: int, numel: int, request: Request) -> int:
        assert not isinstance(request, int | float)
        return survey_bytes(targets, numel, request)

    def fuse_bytes(self, targets: int, numel: int, selects: Sequence[Select]) -> int:
        return fuse_bytes(numel, selects)

    def enqueue_survey(
        self, inputs: Sequence[Array], select_topk: float, variant: str, room: Room | None = None
    ) -> OnDevice:
        """Survey, and derive SCE's parameters, on the current stream of the inputs' device."""
        self.check_inputs(inputs)
        data, numel, device = pointers(inputs), inputs[0].numel, _device(inputs)
        if room is None:
            room = self.make_room(inputs, select_topk)

        def run(config: Config) -> OnDevice:
            return launch_survey(data, numel, select_topk, variant, room, config)

        scored = needs_scores(select_topk, numel)
        with _current(device):
            key = ("survey", device, scored, *(x.dtype for x in data))
            return run(self._tuner.choose(key, numel, run))

    def enqueue_fuse(
        self, inputs: Sequence[Array], survey: OnDevice, out: Array, offset: int = 0
    ) -> None:
        """Fuse by what `survey` left, on the current stream of the inputs' device."""
        self.check_inputs(inputs)
        check_output(out, inputs)
        if out.numel == 0:
            return
        data, device, to = pointers(inputs), _device(inputs), tensor_of(out)
        found: torch.Tensor = survey.result.view(torch.int64)
        with _current(device):
            params = _params(survey)

            def run(config: Config, result: torch.Tensor) -> None:
                launch_fuse(data, to, out.dtype.abi, params, result, offset, config)

            def attempt(config: Config) -> None:
                run(config, torch.empty_like(found))  # `found` counts only the real run

            masks = (params.masked, params.floored)
            key = ("fuse", device, *masks, to.dtype, *(x.dtype for x in data))
            run(self._tuner.choose(key, out.numel, attempt), found)

    def fuse(
        self, inputs: Sequence[Array], params: FuseParams, out: Array, offset: int, threads: int
    ) -> int:
        """By any parameters. SCE's have their own kernel, which takes only a floor_divisor >= 0."""
        if params.is_sce and params.floor_divisor >= 0 and len(inputs) > 1:
            return super().fuse(inputs, params, out, offset, threads)
        self.check_inputs(inputs, least=0)
        check_output(out, inputs)
        if out.numel == 0:
            return 0
        data, to = pointers(inputs), tensor_of(out)
        config = self._tuner.fixed or general_config(len(inputs) - 1)
        with _current(_device(inputs)):
            result = launch_fuse_general(data, to, out.dtype.abi, params, offset, config)
        return int(result[place(places.R_WRITTEN)])

    def unpack_result(self, raw: bytes, targets: int) -> tuple[SceResult, int]:
        """As `result`, from bytes on the host."""
        numbers, energies = (struct.unpack(f"{RESULT}{code}", raw) for code in "qd")
        energy, nonfinite = place(places.R_ENERGY), place(places.R_NONFINITE)
        learned = SceResult(
            nonzero=numbers[place(places.R_NONZERO)],
            selected=numbers[place(places.R_SELECTED)],
            threshold=numbers[place(places.R_THRESHOLD)],
            tie_limit=numbers[place(places.R_TIE_LIMIT)],
            passes=numbers[place(places.R_PASSES)],
            energy=energies[energy : energy + targets],
            nonfinite=numbers[nonfinite : nonfinite + targets + 2],
        )
        return learned, numbers[place(places.R_WRITTEN)]

    def check_inputs(self, inputs: Sequence[Array], least: int = 1) -> None:
        super().check_inputs(inputs, least)
        if inputs[0].numel >= _MOST:
            raise BackendError(
                f"{inputs[0].numel} elements; the Triton kernels take less than 2^36"
            )


def _params(survey: OnDevice) -> Params:
    """A survey's Params, or Params made from packed ones on the device."""
    if isinstance(survey.params, Params):
        return survey.params
    given = survey.params.view(torch.float64)[: survey.targets + 4]
    return launch_params(given, masked=True, floored=True)


def _device(inputs: Sequence[Array]) -> torch.device:
    """The inputs' device. Raises BackendError if the kernels do not run there."""
    device = device_of(inputs)
    if (device.type == "cpu") != INTERPRETED:
        raise BackendError(
            "backend triton takes the CPU's tensors only in Triton's interpreter: set TRITON_INTERPRET=1"
            if device.type == "cpu"
            else "Triton's interpreter (TRITON_INTERPRET=1) takes the CPU's tensors only"
        )
    return device


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Makes `device` the current one: Triton launches on its current stream."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
