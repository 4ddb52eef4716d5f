"""Runs PEFT's merges of adapters on the kernels: `add_weighted_adapter`, and the functions of peft.utils.merge_utils.

PEFT calls an adapter's matrices task tensors; they are merged into a base of zeros. Signs are elected, and survivors
averaged, as in peft.utils.merge_utils (0.19 to 0.21): by the sum of the elements that were not pruned, with a share of
one for each survivor. A merge that the kernels do not support goes to PEFT's own functions.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from typing import Any

import torch

from ..backends.contract import NONE, Band, Draw, FuseParams, Magnitudes, Select
from ..backends.results import MagnitudesResult, expect
from ..errors import MergeError
from ..in_memory.ops import fuse, survey
from ..in_memory.tensor_kinds import check_tensor
from ..methods.task_arithmetic import draw_key
from .tally import Counts, LeftToTool, Tally

_HOME = "peft.utils.merge_utils"
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_tally = Tally("peft")
_lock = threading.Lock()
#: PEFT's own functions, by name; empty: not installed.
_own: dict[str, Callable[..., torch.Tensor]] = {}


def install() -> None:
    """Run PEFT's merges of adapters in this process on the kernels from now on. Idempotent.

    Raises:
        MergeError: PEFT is missing, or has no such functions.
    """
    with _lock:
        if _own:
            return
        try:
            # Imports every module that imports the functions by name, so that `_exchange` finds them.
            import_module("peft.tuners.lora.model")
            home = import_module(_HOME)
        except ImportError as error:
            raise MergeError(
                f"PEFT cannot be imported ({error}): pip install 'peft>=0.19'"
            ) from error
        missing = [name for name in _KERNELS if not hasattr(home, name)]
        if missing:
            raise MergeError(f"this PEFT has no {', '.join(missing)} in {_HOME}")
        _own.update({name: getattr(home, name) for name in _KERNELS})
        for name, own in _own.items():
            _exchange(own, _replacement(name, own))


def uninstall() -> None:
    """Restore PEFT's own functions. Idempotent."""
    with _lock:
        for name, own in _own.items():
            _exchange(getattr(sys.modules[_HOME], name), own)
        _own.clear()


def counts() -> Counts:
    """The tensors merged since the start, or the last `reset_counts`, by the kernels and by PEFT's own code."""
    return _tally.counts()


def reset_counts() -> None:
    """Set all counts to 0."""
    _tally.reset()


def _exchange(old: object, new: object) -> None:
    """Replace `old` by `new` under every name in PEFT's modules."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "peft":
            for key, value in list(vars(module).items()):
                if value is old:
                    setattr(module, key, new)


def _replacement(name: str, own: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    kernel = _KERNELS[name]

    @wraps(own)
    def merge(task_tensors: Any, weights: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        try:
            _check(task_tensors, weights)
            result = kernel(task_tensors, weights, *args, **kwargs)
        except MergeError as error:
            reason = str(error)
        else:
            _tally.merged(name)
            return result
        # Outside the handler, because the error holds what was allocated before it was raised.
        _tally.left(name, reason)
        return own(task_tensors, weights, *args, **kwargs)

    return merge


def _check(task_tensors: Any, weights: Any) -> None:
    """Raise LeftToTool, or TensorTypeError, for what the kernels cannot merge."""
    if not isinstance(weights, torch.Tensor) or weights.dim() != 1:
        raise LeftToTool("weights that are no vector")
    if len(weights) != len(task_tensors) or not len(task_tensors):
        raise LeftToTool(f"{len(weights)} weights for {len(task_tensors)} tensors")
    for i, tensor in enumerate(task_tensors):
        check_tensor(f"task tensor {i}", tensor)
    every = [*task_tensors, weights]
    if torch.is_grad_enabled() and any(t.requires_grad for t in every):
        raise LeftToTool("gradients are recorded")
    for tensor in task_tensors:
        if tensor.dtype not in _DTYPES or tensor.dtype != task_tensors[0].dtype:
            raise LeftToTool(str(tensor.dtype).removeprefix("torch."))
    if any(t.device.type != "cpu" for t in task_tensors):
        raise LeftToTool(f"tensors on {task_tensors[0].device.type}")


# --- PEFT's functions, by the same names -------------------------------------------------


def task_arithmetic(task_tensors: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum of tensors of one shape and dtype (bf16, fp16 or fp32).

    Raises MergeError, as do the functions below.
    """
    return _sum(task_tensors, weights, ())


def magnitude_prune(
    task_tensors: Sequence[torch.Tensor], weights: torch.Tensor, density: float
) -> torch.Tensor:
    """The weighted sum of each tensor's elements of largest magnitude, a share `density`."""
    return _sum(task_tensors, weights, _largest(task_tensors, density))


def dare_linear(
    task_tensors: Sequence[torch.Tensor], weights: torch.Tensor, density: float
) -> torch.Tensor:
    """The weighted sum of a random share `density` of each tensor's elements, divided by the density.

    The draw depends on torch's default generator, as in PEFT.
    """
    return _sum(task_tensors, weights, _drawn(task_tensors, density), _rescaling(density))


def ties(
    task_tensors: Sequence[torch.Tensor],
    weights: torch.Tensor,
    density: float,
    majority_sign_method: str = "total",
) -> torch.Tensor:
    """The mean of each tensor's elements of largest magnitude (a share `density`) that have the elected sign."""
    selects = _largest(task_tensors, density)
    return _elected(task_tensors, weights, selects, majority_sign_method)


def dare_ties(
    task_tensors: Sequence[torch.Tensor],
    weights: torch.Tensor,
    density: float,
    majority_sign_method: str = "total",
) -> torch.Tensor:
    """The mean of random elements of each tensor (a share `density`) that have the elected sign."""
    selects = _drawn(task_tensors, density)
    return _elected(task_tensors, weights, selects, majority_sign_method, _rescaling(density))


_KERNELS: dict[str, Callable[..., torch.Tensor]] = {
    f.__name__: f for f in (task_arithmetic, magnitude_prune, dare_linear, ties, dare_ties)
}


def _sum(
    tensors: Sequence[torch.Tensor],
    weights: torch.Tensor,
    selects: tuple[Select, ...],
    scale: float = 1.0,
) -> torch.Tensor:
    own = tuple(weights.tolist())
    params = FuseParams(own, elect="none", divisor=1.0, scale=scale, selects=selects)
    return _merge(tensors, weights, params)


def _elected(
    tensors: Sequence[torch.Tensor],
    weights: torch.Tensor,
    selects: tuple[Select, ...],
    majority_sign_method: str,
    scale: float = 1.0,
) -> torch.Tensor:
    # To count signs, fuse looks at weighted values, PEFT at unweighted ones.
    if majority_sign_method == "frequency" and bool((weights <= 0).any()):
        raise LeftToTool("signs counted where a weight is not positive")
    if majority_sign_method not in ("total", "frequency"):
        raise LeftToTool(f"majority_sign_method {majority_sign_method!r}")
    return _merge(
        tensors,
        weights,
        FuseParams(
            tuple(weights.tolist()),
            floor_divisor=1.0,
            elect="sum" if majority_sign_method == "total" else "count",
            shares=(1.0,) * len(tensors),
            scale=scale,
            selects=selects,
        ),
    )


def _merge(
    tensors: Sequence[torch.Tensor], weights: torch.Tensor, params: FuseParams
) -> torch.Tensor:
    # The dtype of PEFT's results: PEFT multiplies by the weights, and after an election divides by fp32.
    dtype = torch.promote_types(tensors[0].dtype, weights.dtype)
    if params.elect != "none":
        dtype = torch.promote_types(dtype, torch.float32)
    if dtype not in _DTYPES:
        raise LeftToTool(f"weights in {str(weights.dtype).removeprefix('torch.')}")
    base = torch.zeros_like(tensors[0])
    return fuse(base, tensors, params, out_dtype=dtype, threads=torch.get_num_threads())


def _largest(tensors: Sequence[torch.Tensor], density: float) -> tuple[Select, ...]:
    if _keeps_all(density):
        return ()
    ranks = (int(density * tensors[0].numel()),)
    learned = survey(
        torch.zeros_like(tensors[0]),
        tensors,
        request=Magnitudes((ranks,) * len(tensors)),
        threads=torch.get_num_threads(),
    )
    return tuple(Band(keep=cut) for (cut,) in expect(MagnitudesResult, learned).cuts)


def _drawn(tensors: Sequence[torch.Tensor], density: float) -> tuple[Select, ...]:
    if _keeps_all(density):
        return ()
    if density == 0:
        return (Band(keep=NONE),) * len(tensors)
    seed = int(torch.randint(2**63 - 1, ()))
    return tuple(
        Draw(draw_key(seed, "", str(i)), int(density * 2**32)) for i in range(len(tensors))
    )


def _rescaling(density: float) -> float:
    return 1 / density if 0 < density < 1 else 1.0


def _keeps_all(density: float) -> bool:
    if not density >= 0:
        raise ValueError(f"density must be at least 0, not {density}")
    if density >= 1:
        warnings.warn(f"density {density} keeps every element", stacklevel=4)
    return density >= 1
