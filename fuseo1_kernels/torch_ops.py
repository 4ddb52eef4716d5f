"""The ops as `torch.ops.fuseo1.*`, for programs under torch.compile or in CUDA graphs.

Importing this module registers them. They take and return tensors of one device, mutate no argument and have fake
kernels; on a GPU they only enqueue on the current stream. survey hands its results to fuse in fp64 tensors, whose
layout is the same on every device, for N targets (fp64 holds every integer here exactly):

    survey  [2N + 6]  nonzero, selected, threshold, tie_limit,  as in SceResult
                      energy of target 1..N,
                      non-finite elements of the base, of target 1..N, and overflows of finite inputs
    params  [N + 4]   weight of target 1..N, floor_divisor,
                      masked (0 or 1), the survey's threshold and tie_limit; as in FuseParams

The ops do not wait for the data, so they do not refuse any: an element where any input is NaN or infinite becomes NaN
and takes no other part, an element that overflows becomes infinite. `merged.isfinite().all()` detects both.

In a compiled program sizes may be dynamic; numbers and strings are constants: a new value recompiles.

Inputs: 1 to 64 targets (on a GPU 16) of the base's shape and device; 0-d, empty and non-contiguous tensors
included; bf16, fp16 or fp32, mixed. Others raise MergeError. There are no gradients: backward through an op raises.

Source: SCE, arXiv 2408.07990. Formulas: csrc/include/fuseo1/survey.h and fuse.h.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .backends.contract import FuseParams
from .backends.interface import can_enqueue
from .backends.results import SceResult, expect
from .errors import MergeError
from .in_memory.merge import merge_tensors
from .in_memory.ops import (
    as_arrays,
    backend_for,
    check_inputs,
    check_out_dtype,
    enqueue_into,
    fuse_into,
    output_for,
    promoted,
)
from .in_memory.tensor_kinds import check_tensor, in_place
from .methods.parameters import resolve_parameters
from .methods.sce import sce_params
from .system import resolve_threads

Tensors = Sequence[torch.Tensor]

# Device types of fake tensors.
_DEVICES = ("cpu", "cuda", "meta")


@torch.library.custom_op(
    "fuseo1::survey",
    mutates_args=(),
    schema='(Tensor base, Tensor[] targets, float select_topk=1.0, str variant="fuseo1") -> (Tensor, Tensor)',
)
def survey(
    base: torch.Tensor, targets: Tensors, select_topk: float = 1.0, variant: str = "fuseo1"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Survey base and targets, usually in one read. Raises MergeError.

    Returns (survey, params), [2N + 6] and [N + 4] fp64 on the inputs' device; `params` are SCE's for `variant`.
    """
    _resolve(select_topk, variant)
    inputs = as_arrays([base, *targets])
    backend = backend_for(inputs, "auto")
    if can_enqueue(backend):
        on_device = backend.enqueue_survey(inputs, select_topk, variant)
        learned, params = backend.numbers(on_device)
        return learned, params
    found = expect(SceResult, backend.survey(inputs, select_topk, resolve_threads(None)))
    sce = sce_params(found, base.numel(), select_topk, variant)
    counts = (found.nonzero, found.selected, found.threshold, found.tie_limit)
    mask = (sce.masked, found.threshold, found.tie_limit)
    return (
        torch.tensor((*counts, *found.energy, *found.nonfinite), dtype=torch.float64),
        torch.tensor((*sce.weights, sce.floor_divisor, *mask), dtype=torch.float64),
    )


@survey.register_fake
def _(
    base: torch.Tensor, targets: Tensors, select_topk: float = 1.0, variant: str = "fuseo1"
) -> tuple[torch.Tensor, torch.Tensor]:
    check_inputs([base, *targets], devices=_DEVICES)
    _resolve(select_topk, variant)
    sizes = 2 * len(targets) + 6, len(targets) + 4
    learned, params = (base.new_empty(size, dtype=torch.float64) for size in sizes)
    return learned, params


@torch.library.custom_op(
    "fuseo1::fuse",
    mutates_args=(),
    schema="(Tensor base, Tensor[] targets, Tensor params, ScalarType? out_dtype=None) -> Tensor",
)
def fuse(
    base: torch.Tensor,
    targets: Tensors,
    params: torch.Tensor,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Mask, elect and sum by `params` ([N + 4] fp64), add to the base, round to `out_dtype` (default: the base's).

    Returns a contiguous tensor of the base's shape. Raises MergeError.
    """
    tensors = [base, *targets]
    inputs = as_arrays(tensors)
    _check_params(params, base, targets)
    out = output_for(tensors, out_dtype or base.dtype, None)
    backend = backend_for(inputs, "auto")
    if can_enqueue(backend):
        packed = backend.from_numbers(in_place("params", params))
        enqueue_into(backend, inputs, packed, out)
    else:
        fuse_into(backend, inputs, _fuse_params(params), out, resolve_threads(None))
    return out


@fuse.register_fake
def _(
    base: torch.Tensor,
    targets: Tensors,
    params: torch.Tensor,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    check_inputs([base, *targets], devices=_DEVICES)
    _check_params(params, base, targets)
    return _empty(base, out_dtype or base.dtype)


@torch.library.custom_op(
    "fuseo1::merge_sce",
    mutates_args=(),
    schema='(Tensor base, Tensor[] targets, float select_topk=1.0, str variant="fuseo1",'
    " ScalarType? out_dtype=None) -> Tensor",
)
def merge_sce(
    base: torch.Tensor,
    targets: Tensors,
    select_topk: float = 1.0,
    variant: str = "fuseo1",
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """survey and fuse in one op: `merge_tensors` with nonfinite="propagate". Raises MergeError.

    `out_dtype` defaults to the inputs' promoted dtype.
    """
    check_inputs([base, *targets])  # its errors name the tensors as the other ops' do
    return merge_tensors(
        [base, *targets],
        "sce",
        base_index=0,
        parameters={"select_topk": select_topk, "variant": variant},
        out_dtype=out_dtype,
        nonfinite="propagate",
    )


@merge_sce.register_fake
def _(
    base: torch.Tensor,
    targets: Tensors,
    select_topk: float = 1.0,
    variant: str = "fuseo1",
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    check_inputs([base, *targets], devices=_DEVICES)
    _resolve(select_topk, variant)
    return _empty(base, out_dtype or promoted([base, *targets]))


def _resolve(select_topk: float, variant: str) -> None:
    resolve_parameters("sce", {"select_topk": select_topk, "variant": variant})


def _check_params(params: torch.Tensor, base: torch.Tensor, targets: Tensors) -> None:
    check_tensor("params", params)
    wanted = len(targets) + 4
    if params.dtype != torch.float64 or tuple(params.shape) != (wanted,):
        raise MergeError(
            f"params is {params.dtype} {tuple(params.shape)}; {len(targets)} targets take float64 ({wanted},)"
        )
    if params.device != base.device:
        raise MergeError(f"params is on {params.device}, the base on {base.device}")


def _fuse_params(params: torch.Tensor) -> FuseParams:
    *weights, floor_divisor, masked, threshold, tie_limit = params.tolist()
    if not (threshold.is_integer() and tie_limit.is_integer() and 0 <= threshold < 1 << 32):
        raise MergeError(f"params: threshold {threshold}, tie_limit {tie_limit}")
    return FuseParams(tuple(weights), floor_divisor, masked != 0, int(threshold), int(tie_limit))


def _empty(base: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    check_out_dtype(dtype)
    return base.new_empty(base.shape, dtype=dtype)
