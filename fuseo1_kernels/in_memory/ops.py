"""The two ops on torch tensors: validated once, then handed to a backend."""

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
from ..backends.registry import load_backend, load_gpu_backend
from ..backends.results import SceResult, SurveyResult
from ..errors import ConfigError, MergeError
from ..system import resolve_threads

_NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}

# From here on a new output gets memory of its own from the system, not reused memory.
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
    """Read base and targets once; learn what a merge must know of the whole, and count what is not finite.

    Args:
        base: any shape, 0-d and empty included; bf16, fp16 or fp32, on the CPU or an NVIDIA GPU. Need not be
            contiguous.
        targets: 1 to 64 (on a GPU 16) tensors of the base's shape and device, each of any of those dtypes.
        select_topk: fraction of the elements with non-zero variance to select, in [0, 1]: SCE's threshold and energies.
        request: something else that is to be learned: Magnitudes (TIES, breadcrumbs), Norms, Gram or
            Divergences.
        backend: "auto", "cpu", "reference", or "cuda" or "triton" for tensors on a GPU; the current stream is
            used, and waited for. With TRITON_INTERPRET=1 "triton" takes tensors on the CPU.
        threads: default: all cores this process may use.

    Raises:
        MergeError: shapes differ, or a dtype, device or number is not supported.

    Source: SCE, arXiv 2408.07990. Formulas: csrc/include/fuseo1/survey.h.
    """
    if not 0.0 <= select_topk <= 1.0:
        raise MergeError(f"select_topk: must be a number in [0, 1], not {select_topk!r}")
    inputs = as_arrays([base, *targets])
    wanted = float(select_topk) if request is None else request
    return backend_for(inputs, backend).survey(inputs, wanted, resolve_threads(threads)).lasting


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
    """Mask, elect the sign, sum with weights, add to the base and round, in one read and one write.

    Args:
        base, targets, backend, threads: as for `survey`.
        params: weights (one per target), election, divisor and masks.
        out_dtype: bf16, fp16 or fp32; default: the base's (or `out`'s).
        out: written in place and returned; the base's shape, overlapping no input.

    Raises:
        MergeError: as for `survey`, and for an `out` that does not fit.

    Source: SCE, arXiv 2408.07990. Formulas: csrc/include/fuseo1/fuse.h.
    """
    inputs = as_arrays([base, *targets], least=1)
    for noun, values in (
        ("weights", params.weights),
        ("shares", params.shares),
        ("selects", params.selects or None),
    ):
        if values is not None and len(values) != len(targets):
            raise MergeError(f"{len(values)} {noun} for {len(targets)} targets")
    check_dtypes(out_dtype=out_dtype)
    wanted = out_dtype or (base.dtype if out is None else out.dtype)
    result = output_for([base, *targets], wanted, out)
    fuse_into(backend_for(inputs, backend), inputs, params, result, resolve_threads(threads))
    return result if out is None else out


def backend_for(inputs: Sequence[Array], backend: str) -> Ops:
    """The backend of that name for the memory in which `inputs` lie."""
    on_gpu = inputs[0].owner.device.type == "cuda"
    interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    return load_gpu_backend(backend) if on_gpu or interpreted else load_backend(backend)


def as_arrays(
    tensors: Sequence[torch.Tensor], names: Sequence[str] | None = None, least: int = 2
) -> list[Array]:
    """Checked views of base and targets; a tensor that is not contiguous is copied.

    `names` is what errors call the tensors, `least` how many there must be.
    """
    check_inputs(tensors, names, least=least)
    return [as_array(tensor.detach().contiguous()) for tensor in tensors]


def check_inputs(
    tensors: Sequence[torch.Tensor],
    names: Sequence[str] | None = None,
    devices: Sequence[str] = ("cpu", "cuda"),
    least: int = 2,
) -> None:
    """Refuse a base and targets that cannot be merged, by shape, dtype and device alone."""
    if names is None:
        names = ["the base", *(f"target {i}" for i in range(1, len(tensors)))]
    if len(tensors) < least:
        raise MergeError("a merge needs a base and at least one target")
    if len(tensors) > MAX_TARGETS + 1:
        raise MergeError(f"1 to {MAX_TARGETS} targets are supported, not {len(tensors) - 1}")
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


def promoted(tensors: Sequence[torch.Tensor]) -> torch.dtype:
    """The narrowest dtype that holds those of `tensors`."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def check_dtypes(**dtypes: object) -> None:
    """Refuse a dtype, by its parameter's name, that is neither torch's nor left out."""
    for name, dtype in dtypes.items():
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise ConfigError(f"{name} must be a torch.dtype such as torch.bfloat16, not {dtype!r}")


def check_out_dtype(dtype: torch.dtype) -> None:
    """Refuse a dtype that is none of an output's."""
    if dtype not in _NAMES:
        raise MergeError(f"the output dtype is {dtype}; supported: {', '.join(_NAMES.values())}")


def output_for(
    tensors: Sequence[torch.Tensor], dtype: torch.dtype, out: torch.Tensor | None
) -> torch.Tensor:
    """`out` if the merge of `tensors` can be written there, else a new tensor."""
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
    if any(n > 1 and stride == 0 for n, stride in zip(out.shape, out.stride(), strict=True)):
        raise MergeError("out is expanded: several of its elements share memory")
    start, end = _extent(out)
    for first, last in map(_extent, tensors):
        if start < last and first < end:
            raise MergeError("out shares memory with an input; the inputs are read twice")
    return out


def fuse_into(
    backend: Ops, inputs: Sequence[Array], params: FuseParams, out: torch.Tensor, threads: int
) -> int:
    """fuse, to an `out` of any strides; returns how many elements are infinity or NaN."""
    with dense(out) as array:
        return backend.fuse(inputs, params, array, 0, threads)


def enqueue_into(
    backend: GpuBackend, inputs: Sequence[Array], survey: OnDevice, out: torch.Tensor
) -> None:
    """The same by what a survey left on the device, waiting for nothing."""
    with dense(out) as array:
        backend.enqueue_fuse(inputs, survey, array)


@contextmanager
def dense(out: torch.Tensor) -> Iterator[Array]:
    """`out` if it is contiguous, else memory that is copied to it."""
    if out.is_contiguous():
        yield as_array(out)
        return
    dense = torch.empty(out.shape, dtype=out.dtype, device=out.device)
    yield as_array(dense)
    out.copy_(dense)


def columns_of(tensor: torch.Tensor, rows: int) -> Array:
    """A copy of a tensor of so many rows, its columns one after the other."""
    return as_array(tensor.detach().reshape(rows, -1).t().contiguous())


@contextmanager
def dense_columns(out: torch.Tensor, rows: int) -> Iterator[Array]:
    """Memory for the columns of `out`, one after the other, that is copied to it."""
    columns = torch.empty((out.numel() // rows, rows), dtype=out.dtype, device=out.device)
    yield as_array(columns)
    out.copy_(columns.t().view(out.shape))


def as_array(tensor: torch.Tensor) -> Array:
    """A view of a contiguous tensor."""
    return Array(tensor.data_ptr(), BY_NAME[_NAMES[tensor.dtype]], tensor.numel(), tensor)


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The first byte that `tensor` touches and the one after its last."""
    if tensor.numel() == 0:
        return 0, 0
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()
