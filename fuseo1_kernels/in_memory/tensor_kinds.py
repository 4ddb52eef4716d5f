"""Checks that tensors can be merged: their elements lie in memory, each at a place of its own if it is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ..errors import TensorTypeError


def as_list(name: str, values: Iterable[Any]) -> list[Any]:
    """Return the argument `name`, which is a sequence, as a list. Raises TensorTypeError."""
    try:
        return list(values)
    except TypeError:
        raise TensorTypeError(
            f"{name} must be a sequence of torch.Tensors, not {_kind(values)}"
        ) from None


def check_tensor(name: str, value: object) -> None:
    """Raise TensorTypeError, which names the argument, unless `value` is a dense torch.Tensor."""
    if not isinstance(value, torch.Tensor):
        advice = "pass torch.from_numpy(it)" if _kind(value) == "ndarray" else "give a torch.Tensor"
        raise TensorTypeError(f"{name} is of type {_kind(value)}; {advice}")
    if value.is_nested:
        raise TensorTypeError(f"{name} is nested; pass it.to_padded_tensor(0), or its parts")
    if value.layout != torch.strided:
        kind = str(value.layout).removeprefix("torch.")
        raise TensorTypeError(f"{name} is {kind}, not dense; pass it.to_dense()")
    if value.is_quantized:
        kind = str(value.dtype).removeprefix("torch.")
        raise TensorTypeError(f"{name} is quantized ({kind}); pass it.dequantize()")


def in_place(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` as consecutive elements in memory: itself, or a copy. Raises TensorTypeError if it has none.

    A negative view (`z.conj().imag`) has the elements of another tensor in memory, with the other sign.
    """
    found = tensor.detach().resolve_neg().contiguous()
    try:
        has_memory = found.numel() == 0 or found.data_ptr() != 0
    except RuntimeError:  # a tensor of torch.func, say
        has_memory = False
    if not has_memory:
        raise TensorTypeError(f"{name} is of type {_kind(tensor)}, which has no memory of its own")
    return found


def is_in_place(out: torch.Tensor) -> bool:
    """Whether what is written to the memory of `out`, in order, are its elements."""
    return out.is_contiguous() and not out.is_neg()


def may_overlap(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements of a tensor may share memory: one dimension's stride is not past all that is inside it."""
    if 0 in shape:
        return False
    reach = 0
    for stride, n in sorted(zip(strides, shape, strict=True)):
        if n > 1:
            if stride <= reach:
                return True
            reach += (n - 1) * stride
    return False


def _kind(value: object) -> str:
    return type(value).__name__
