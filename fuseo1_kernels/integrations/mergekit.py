"""Runs the merge methods of mergekit 0.1.5 on the kernels.

mergekit looks a method up in many ways (the registry, a name imported from its module, a plan made before), and all
of them end in one object's `implementation`, or in `GeneralizedTaskArithmeticMerge.merge_group`. Only those are
replaced, so the binding of parameters, validation, batching, dtypes and errors stay mergekit's. A merge that the
kernels do not support goes on to the replaced code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..errors import MergeError
from ..in_memory.merge import merge_tensors
from ..in_memory.tensor_kinds import check_tensor
from ..methods import METHODS
from .tally import NOTHING_TO_COMPUTE, Counts, LeftToTool, Tally

#: The version whose semantics the kernels reproduce.
SUPPORTED = "0.1.5"

#: mergekit's generalized task arithmetics, by (consensus, sparsification). They differ otherwise only in defaults,
#: which mergekit has filled in.
_TASK_ARITHMETIC = {
    (None, None): "task_arithmetic",
    ("sum", "magnitude"): "ties",
    ("sum", "random"): "dare_ties",
    (None, "random"): "dare_linear",
    (None, "magnitude_outliers"): "breadcrumbs",
    ("sum", "magnitude_outliers"): "breadcrumbs_ties",
    ("sum", "della_magprune"): "della",
    (None, "della_magprune"): "della_linear",
}

_RANDOM = ("dare_ties", "dare_linear", "della", "della_linear")

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_DEVICES = ("cpu", "cuda")

_tally = Tally("mergekit")
_lock = threading.Lock()
#: Functions that each restore one replaced attribute; empty: not installed.
_restore: list[Callable[[], None]] = []


def install() -> None:
    """Run mergekit's merges in this process on the kernels from now on. Idempotent.

    Raises:
        MergeError: mergekit is missing, or of another version.
    """
    with _lock:
        if _restore:
            return
        try:
            found = version("mergekit")
        except PackageNotFoundError as error:
            raise MergeError(
                f"mergekit is not installed: pip install mergekit=={SUPPORTED}"
            ) from error
        if found != SUPPORTED:
            raise MergeError(f"the kernels stand in for mergekit {SUPPORTED}; this is {found}")
        from mergekit.merge_methods import registered_methods
        from mergekit.merge_methods.base import BatchedMergeMethod, FunctionalGroupMergeMethod
        from mergekit.merge_methods.generalized_task_arithmetic import (
            GeneralizedTaskArithmeticMerge as TaskArithmetic,
        )

        for method in registered_methods():
            for kind, kernel in (
                (BatchedMergeMethod, _batch_kernel),
                (FunctionalGroupMergeMethod, _group_kernel),
            ):
                # Methods that the program has registered itself are left alone.
                if isinstance(method, kind) and _is_mergekits(method.implementation):
                    own = method.implementation
                    _replace(method, "implementation", kernel(method.spec.name, own))
        _replace(TaskArithmetic, "merge_group", _task_arithmetic(TaskArithmetic.merge_group))


def uninstall() -> None:
    """Restore mergekit's own code. Idempotent."""
    with _lock:
        while _restore:
            _restore.pop()()


def counts() -> Counts:
    """The tensors merged since the start, or the last `reset_counts`, by the kernels and by mergekit's own code."""
    return _tally.counts()


def reset_counts() -> None:
    """Set all counts to 0."""
    _tally.reset()


def _is_mergekits(function: Callable[..., torch.Tensor]) -> bool:
    return function.__module__.partition(".")[0] == "mergekit"


def _replace(owner: Any, name: str, replacement: Callable[..., torch.Tensor]) -> None:
    own = getattr(owner, name)

    def restore() -> None:
        # A later replacement by someone else stays: it calls ours, which calls mergekit's while not installed.
        if getattr(owner, name) is replacement:
            setattr(owner, name, own)

    setattr(owner, name, replacement)
    _restore.append(restore)


# --- replacements of mergekit's functions ------------------------------------------------


def _group_kernel(method: str, own: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Replace a method that takes a TensorGroup, and parameters that are scalars or mappings by input."""

    @wraps(own)
    def kernel(group: Any, **parameters: Any) -> torch.Tensor:
        return _attempt(
            method,
            1,
            partial(_merge_group, method, group, parameters),
            partial(own, group, **parameters),
        )

    return kernel


def _task_arithmetic(own: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Replace `merge_group` of the class whose instances are TIES, DARE and others."""

    @wraps(own)
    def merge_group(self: Any, group: Any, /, **parameters: Any) -> torch.Tensor:
        kind = self.consensus_method, self.sparsification_method
        # A program's own instance may have any name, and combine options that have no name here.
        method = _TASK_ARITHMETIC.get(kind, f"another {self.method_name}")
        return _attempt(
            method,
            1,
            partial(_merge_group, method, group, parameters),
            partial(own, self, group, **parameters),
        )

    return merge_group


def _batch_kernel(method: str, own: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Replace a method that takes a TensorBatch: inputs (outputs, *weight), coefficients (outputs, inputs)."""

    @wraps(own)
    def kernel(batch: Any, **parameters: Any) -> torch.Tensor:
        return _attempt(
            method,
            len(batch.tensors[0]),
            partial(_merge_batch, method, batch, parameters),
            partial(own, batch, **parameters),
        )

    return kernel


def _attempt(
    method: str,
    tensors: int,
    ours: Callable[[], torch.Tensor],
    own: Callable[[], torch.Tensor],
) -> torch.Tensor:
    """Merge with the kernels (`ours`), or with mergekit's `own` code if they refuse; counts `tensors` tensors."""
    if not _restore:
        return own()
    try:
        result = ours()
    except MergeError as error:
        reason = str(error)
    else:
        _tally.merged(method, tensors)
        return result
    # Outside the handler, because the error holds what was allocated before it was raised.
    _tally.left(method, reason, tensors)
    return own()


def _merge_group(method: str, group: Any, parameters: Mapping[str, Any]) -> torch.Tensor:
    tensors = [entry.tensor for entry in group.entries]
    _check(method, tensors)
    base = None
    if METHODS[method].base != "ignored":
        base = next((i for i, entry in enumerate(group.entries) if entry.is_base), None)
    # Mappings by input have values for all inputs, or for all but the base.
    values = {
        name: [value[entry.id] for entry in group.entries if entry.id in value]
        if isinstance(value, Mapping)
        else value
        for name, value in parameters.items()
    }
    if values.get("scale") == [None] or (base == 0 and len(tensors) == 1):
        raise LeftToTool(NOTHING_TO_COMPUTE)
    masks = _masks(group) if method in _RANDOM else {}
    return _merge(method, tensors, base, values, **masks)


def _merge_batch(method: str, batch: Any, parameters: Mapping[str, Any]) -> torch.Tensor:
    coefficients = {k: v for k, v in parameters.items() if isinstance(v, torch.Tensor)}
    _check(method, batch.tensors, *coefficients.values())
    base = None if METHODS[method].base == "ignored" else batch.base_index
    # The inputs may have any strides; the merged tensors are contiguous.
    result = torch.empty_like(batch.tensors[0], memory_format=torch.contiguous_format)
    for row, out in enumerate(result):
        values = {**parameters, **{name: v[row].tolist() for name, v in coefficients.items()}}
        _merge(method, [t[row] for t in batch.tensors], base, values, out=out)
    return result


def _check(method: str, tensors: Sequence[torch.Tensor], *coefficients: torch.Tensor) -> None:
    """Raise LeftToTool, or TensorTypeError, for inputs that the kernels cannot merge, whatever the parameters."""
    if method not in METHODS:
        raise LeftToTool("not a method of the kernels")
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, *coefficients)):
        raise LeftToTool("gradients are recorded")
    for i, tensor in enumerate(tensors):
        check_tensor(f"tensor {i}", tensor)
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise LeftToTool(f"tensors of type {type(tensor).__name__}")
        if tensor.dtype not in _DTYPES:
            raise LeftToTool(str(tensor.dtype).removeprefix("torch."))
        if tensor.device.type not in _DEVICES:
            raise LeftToTool(f"tensors on {tensor.device.type}")


def _merge(
    method: str,
    tensors: Sequence[torch.Tensor],
    base: int | None,
    parameters: Mapping[str, Any],
    *,
    out: torch.Tensor | None = None,
    **masks: Any,
) -> torch.Tensor:
    """Merge checked tensors of one dtype; `masks`: arguments of merge_tensors for random masks. Raises MergeError."""
    if method == "sce":
        parameters = {**parameters, "variant": "mergekit"}
    return merge_tensors(
        tensors,
        method,
        base_index=base,
        parameters=parameters,
        out=out,
        threads=torch.get_num_threads(),
        nonfinite="propagate",
        **masks,
    )


def _masks(group: Any) -> dict[str, Any]:
    """Arguments of merge_tensors for random masks, which depend on torch's seed and the names of tensor and models.

    They do not depend on earlier merges. Tensors without a name must not share masks, so they take torch's next
    random number.
    """
    ids = [entry.id for entry in group.entries]
    if group.metadata.name is None:
        return {"ids": ids, "random_seed": int(torch.randint(2**63 - 1, ()))}
    return {"ids": ids, "random_seed": torch.initial_seed(), "name": group.metadata.name}
