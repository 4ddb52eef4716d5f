"""The two ops on torch tensors: arguments are validated, then passed to a backend."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import overload

import torch

from ..backends.arrays import BY_NAME, Array, advise_huge_pages
from ..backends.contract import MAX_TARGETS, FuseParams, Request
from ..backends.interface import GpuBackend, OnDevice, Ops
from ..backends.reference.average import average_chunk
from ..backends.registry import load_backend, load_gpu_backend
from ..backends.results import SceResult, SurveyResult
from ..errors import ConfigError, MergeError
from ..methods.rule import Average
from ..system import resolve_threads
from .tensor_kinds import as_list, check_tensor, in_place, is_in_place, may_overlap

_NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}

# Bytes. The allocator maps new pages for outputs of at least this size, and huge pages make them faster to touch.
_HUGE = 4 << 20


@overload
def survey(
    base: torch.Tensor,
    targets: Sequence[torch.Tensor],
    *,
    select_topk: float = 1.0,
    request: None = None,
    backend: str = "auto",
    threads: int | None = None,
) -> SceResult: ...


@overload
def survey(
    base: torch.Tensor,
    targets: Sequence[torch.Tensor],
    *,
    request: Request,
    backend: str = "auto",
    threads: int | None = None,
) -> SurveyResult: ...


def survey(
    base: torch.Tensor,
    targets: Sequence[torch.Tensor],
    *,
    select_topk: float = 1.0,
    request: Request | None = None,
    backend: str = "auto",
    threads: int | None = None,
) -> SurveyResult:
    """Survey a whole tensor: compute the threshold, energies or sums that fuse needs, and count non-finite elements.

    Args:
        base: a tensor of any shape, 0-d and empty included; bf16, fp16 or fp32; on the CPU or an NVIDIA GPU; contiguous
            or not.
        targets: 1 to 64 (on a GPU 16) tensors of the base's shape and device, each bf16, fp16 or fp32.
        select_topk: fraction of the elements with non-zero variance to select, in [0, 1]. SCE's survey: threshold and
            energies.
        request: another survey instead: Magnitudes (TIES, breadcrumbs), Norms, Overlaps, Gram or Divergences.
        backend: "auto", "cpu" or "reference"; for tensors on a GPU "auto", "cuda" or "triton", which use the current
            stream and wait for it. With TRITON_INTERPRET=1 "triton" takes tensors on the CPU.
        threads: number of threads. None: one for each core that this process may use.

    Returns:
        SceResult, or the result type of `request` (fuseo1_kernels.backends.results).

    Raises:
        MergeError: shapes differ, or a dtype, device or number is not supported.

    Source: SCE, arXiv 2408.07990. Formulas: csrc/include/fuseo1/survey.h.
    """
    if not 0.0 <= select_topk <= 1.0:
        raise MergeError(f"select_topk: must be a number in [0, 1], not {select_topk!r}")
    inputs = as_arrays([base, *as_list("targets", targets)])
    if request is None:
        request = float(select_topk)
    return backend_for(inputs, backend).survey(inputs, request, resolve_threads(threads)).lasting


def fuse(
    base: torch.Tensor,
    targets: Sequence[torch.Tensor],
    params: FuseParams,
    *,
    out_dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    backend: str = "auto",
    threads: int | None = None,
) -> torch.Tensor:
    """Select elements, elect signs, sum with weights, add to the base and round, in one read and one write.

    Args:
        base, targets: as for `survey`; there may be no targets.
        params: weights (one per target), election, divisor and selections.
        out_dtype: bf16, fp16 or fp32. Default: the dtype of `out`, or of the base.
        out: written in place and returned. It has the base's shape and device and overlaps no input.
        backend, threads: as for `survey`.

    Returns:
        `out`, or a new tensor of the base's shape and device.

    Raises:
        MergeError: as for `survey`, and for an `out` that does not fit.

    Source: SCE, arXiv 2408.07990. Formulas: csrc/include/fuseo1/fuse.h.
    """
    targets = as_list("targets", targets)
    if out is not None:
        check_tensor("out", out)
    inputs = as_arrays([base, *targets], least=1)
    for noun, values in (
        ("weights", params.weights),
        ("shares", params.shares),
        ("alone", params.alone),
        ("selects", params.selects or None),
    ):
        if values is not None and len(values) != len(targets):
            raise MergeError(f"{len(values)} {noun} for {len(targets)} targets")
    check_dtypes(out_dtype=out_dtype)
    dtype = out_dtype or (base.dtype if out is None else out.dtype)
    result = output_for([base, *targets], dtype, out)
    fuse_into(backend_for(inputs, backend), inputs, params, result, resolve_threads(threads))
    return result if out is None else out


def backend_for(inputs: Sequence[Array], backend: str) -> Ops:
    """Return the named backend for the memory that holds `inputs`. Raises BackendError."""
    on_gpu = inputs[0].owner.device.type == "cuda"
    interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    return load_gpu_backend(backend) if on_gpu or interpreted else load_backend(backend)


def as_arrays(
    tensors: Sequence[torch.Tensor],
    names: Sequence[str] | None = None,
    least: int = 2,
    any_number: bool = False,
) -> list[Array]:
    """Check base and targets and return views of them. A tensor that is not contiguous is copied.

    The arguments are those of `check_inputs`. Raises MergeError.
    """
    names = names or _base_and_targets(len(tensors))
    check_inputs(tensors, names, least=least, any_number=any_number)
    return [as_array(in_place(name, tensor)) for name, tensor in zip(names, tensors, strict=True)]


def average_on_device(tensors: Sequence[torch.Tensor], rule: Average, out: torch.Tensor) -> int:
    """Average contiguous tensors in a GPU's memory into `out`, by torch; return how many are infinite or NaN."""
    sums = torch.empty(out.numel(), dtype=torch.float64, device=out.device)
    merged = None
    for part, params in rule.steps():
        merged = average_chunk([t.view(-1) for t in tensors[part]], params, sums, out.dtype)
    assert merged is not None
    out.view(-1).copy_(merged)
    return int((~merged.isfinite()).sum())


def check_inputs(
    tensors: Sequence[torch.Tensor],
    names: Sequence[str] | None = None,
    devices: Sequence[str] = ("cpu", "cuda"),
    least: int = 2,
    any_number: bool = False,
) -> None:
    """Raise MergeError unless base and targets fit together in number, dtype, device and shape.

    Args:
        tensors: the base first.
        names: names of the tensors in errors.
        devices: the supported device types.
        least: the least number of tensors.
        any_number: whether more are allowed than survey and fuse take.
    """
    names = names or _base_and_targets(len(tensors))
    for name, tensor in zip(names, tensors, strict=True):
        check_tensor(name, tensor)
    if len(tensors) < least:
        raise MergeError("a merge needs a base and at least one target")
    if not any_number:
        check_number(tensors)
    shape, device = tensors[0].shape, tensors[0].device
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.dtype not in _NAMES:
            raise MergeError(f"{name} is {tensor.dtype}; supported: {', '.join(_NAMES.values())}")
        if tensor.device.type not in devices:
            raise MergeError(f"{name} is on {tensor.device}; merges run on the CPU and NVIDIA GPUs")
        if tensor.device != device:
            raise MergeError(f"{name} is on {tensor.device}, {names[0]} on {device}")
        if tensor.shape != shape:
            raise MergeError(f"{name} has shape {tuple(tensor.shape)}, {names[0]} {tuple(shape)}")


def check_number(tensors: Sequence[torch.Tensor]) -> None:
    """Raise MergeError if base and targets are more than survey and fuse take."""
    if len(tensors) > MAX_TARGETS + 1:
        raise MergeError(f"1 to {MAX_TARGETS} targets are supported, not {len(tensors) - 1}")


def _base_and_targets(count: int) -> list[str]:
    return ["the base", *(f"target {i}" for i in range(1, count))]


def promoted(tensors: Sequence[torch.Tensor]) -> torch.dtype:
    """Return the narrowest dtype that holds the dtypes of all `tensors`."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def check_dtypes(**dtypes: object) -> None:
    """Raise ConfigError, naming the parameter, unless each value is a torch.dtype or None."""
    for name, dtype in dtypes.items():
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise ConfigError(f"{name} must be a torch.dtype such as torch.bfloat16, not {dtype!r}")


def check_out_dtype(dtype: torch.dtype) -> None:
    """Raise MergeError if `dtype` is not supported for outputs."""
    if dtype not in _NAMES:
        raise MergeError(f"the output dtype is {dtype}; supported: {', '.join(_NAMES.values())}")


def output_for(
    tensors: Sequence[torch.Tensor], dtype: torch.dtype, out: torch.Tensor | None
) -> torch.Tensor:
    """Return `out`, or a new tensor if it is None. Raises MergeError if `out` cannot hold the merge of `tensors`."""
    base = tensors[0]
    check_out_dtype(dtype)
    if out is None:
        new = torch.empty(base.shape, dtype=dtype, device=base.device)
        if new.nbytes >= _HUGE and new.device.type == "cpu":
            advise_huge_pages(new.data_ptr(), new.nbytes)
        return new
    if out.dtype != dtype or out.shape != base.shape or out.device != base.device:
        raise MergeError(
            f"out is {out.dtype} {tuple(out.shape)} on {out.device}; "
            f"the result is {dtype} {tuple(base.shape)} on {base.device}"
        )
    if out.requires_grad:
        raise MergeError("out requires grad; pass out.detach()")
    if may_overlap(out.shape, out.stride()):
        raise MergeError("out overlaps itself: several of its elements share memory (expanded?)")
    start, end = _extent(out)
    for first, last in map(_extent, tensors):
        if start < last and first < end:
            raise MergeError("out shares memory with an input; the inputs are read twice")
    return out


def fuse_into(
    backend: Ops, inputs: Sequence[Array], params: FuseParams, out: torch.Tensor, threads: int
) -> int:
    """Fuse into `out`, which may have any strides; return the number of output elements that are infinite or NaN."""
    with dense(out) as array:
        return backend.fuse(inputs, params, array, 0, threads)


def enqueue_into(
    backend: GpuBackend, inputs: Sequence[Array], survey: OnDevice, out: torch.Tensor
) -> None:
    """Enqueue the fuse into `out`, with the parameters that `survey` left on the device. Does not wait."""
    with dense(out) as array:
        backend.enqueue_fuse(inputs, survey, array)


@contextmanager
def dense(out: torch.Tensor) -> Iterator[Array]:
    """Yield `out` if its elements lie in memory in order, else a buffer that is copied to `out` at the end."""
    if is_in_place(out):
        yield as_array(out)
        return
    buffer = torch.empty(out.shape, dtype=out.dtype, device=out.device)
    yield as_array(buffer)
    out.copy_(buffer)


def columns_of(tensor: torch.Tensor, rows: int) -> Array:
    """Return a column-major copy of a tensor with `rows` rows."""
    return as_array(tensor.detach().resolve_neg().reshape(rows, -1).t().contiguous())


@contextmanager
def dense_columns(out: torch.Tensor, rows: int) -> Iterator[Array]:
    """Yield a column-major buffer that is copied to `out`, of `rows` rows, at the end."""
    columns = torch.empty((out.numel() // rows, rows), dtype=out.dtype, device=out.device)
    yield as_array(columns)
    out.copy_(columns.t().view(out.shape))


def as_array(tensor: torch.Tensor) -> Array:
    """Return a view of a contiguous tensor."""
    return Array(tensor.data_ptr(), BY_NAME[_NAMES[tensor.dtype]], tensor.numel(), tensor)


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the address of the tensor's first byte and the address after its last byte."""
    if tensor.numel() == 0:
        return 0, 0
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()
