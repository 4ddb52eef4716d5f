"""Merges in memory: torch tensors, state dictionaries and modules.

The signatures follow mergekit 0.1.5's in-memory functions, so that a program can call either.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import ConfigError, MergeError, TensorTypeError
from .survey_cache import ResidentSurveys
from .tensor_kinds import as_list, check_tensor
from .tensor_merge import InMemoryMerge, start_together

StateDict = Mapping[str, torch.Tensor]


def merge_tensors(
    tensors: Sequence[torch.Tensor],
    method: str,
    *,
    base_index: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    ids: Sequence[Hashable] | None = None,
    dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
    out: torch.Tensor | None = None,
    threads: int | None = None,
    nonfinite: str = "error",
    surveys: ResidentSurveys | None = None,
    random_seed: int = 0,
    name: str = "",
) -> torch.Tensor:
    """Merge one tensor of several models.

    On a GPU, a merge by SCE is enqueued on the current stream. With nonfinite="error" the call waits for it once. With
    "propagate" it does not wait, except for a survey that is new to `surveys`. Without `surveys`, and after one call
    that loads the kernels, `torch.cuda.graph` can capture it.

    Args:
        tensors: tensors of one shape (0-d and empty included), each bf16, fp16 or fp32, dense, contiguous or not, all
            on the CPU or on one NVIDIA GPU (at most 17 there).
        method: one of fuseo1_kernels.methods.METHODS, such as "sce", "ties" or "slerp" (docs/config.md).
        base_index: index of the base in `tensors`. The others are summed in their order. None: no base, for methods
            that need none.
        parameters: the method's parameters (docs/config.md). A per-model parameter ("weight", "density") is one value
            for all models, a sequence with one value for each tensor but the base, or a mapping from `ids`.
        ids: names of the tensors in errors. Default: their indices. Random masks depend on them.
        dtype, out_dtype: the output's dtype; `out_dtype` wins. Default: the inputs' promoted dtype. Inputs are never
            rounded to it first.
        backend: "auto", "cpu" or "reference"; for tensors on a GPU "auto", "cuda" or "triton".
        out: written in place and returned. It must overlap neither an input nor itself. After an error about NaN,
            infinity or overflow it holds the result of "propagate". It is unchanged if the inputs are refused before
            fuse: always on the CPU, on a GPU if `surveys` has the survey.
        threads: number of threads. None: one for each core that this process may use. Never changes a bit of the
            result.
        nonfinite: "error" refuses NaN and infinite elements. "propagate": an element that is NaN or infinite in any
            input becomes NaN and is otherwise left out.
        surveys: finds and keeps surveys of these tensors.
        random_seed: seed of random masks (DARE, DELLA). With `name` and a model's id it keys a mask.
        name: the tensor's name.

    Returns:
        A tensor of the base's shape, without autograd history. The inputs are not changed.

    Raises:
        TensorTypeError (a MergeError and a TypeError): an argument is no tensor, or sparse, nested or quantized.
        MergeError: other invalid arguments, non-finite elements that are refused, or a backend that cannot run.

    Source: the method's, METHODS[method].reference.
    """
    merge = InMemoryMerge.check(
        tensors,
        method,
        base_index=base_index,
        parameters=parameters,
        ids=ids,
        dtype=dtype,
        out_dtype=out_dtype,
        backend=backend,
        out=out,
        threads=threads,
        nonfinite=nonfinite,
        surveys=surveys,
        random_seed=random_seed,
        name=name,
    )
    merge.start()
    merge.finish()
    return merge.result


def merge_state_dicts(
    models: Mapping[Hashable, StateDict | torch.nn.Module] | Sequence[StateDict | torch.nn.Module],
    method: str,
    *,
    base: Hashable | None = None,
    parameters: Mapping[str, Any] | None = None,
    strict: bool = True,
    dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
    threads: int | None = None,
    nonfinite: str = "error",
    surveys: ResidentSurveys | None = None,
    random_seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Merge modules or state dictionaries, tensor by tensor.

    On a GPU, SCE merges tensors of up to 65,536 elements together in one launch, and waits for the GPU once everything
    is enqueued: errors about the data are raised then.

    Args:
        models: modules or state dictionaries by id, or a sequence of them with the ids 0, 1, ... The base is included.
        method: as for `merge_tensors`.
        base: the base's id. None: no base.
        parameters: as for `merge_tensors`.
        strict: refuse models with different tensor names. False: merge the names that all models have.
        dtype, out_dtype, backend, threads, nonfinite, surveys, random_seed: as for `merge_tensors`.

    Returns:
        The merged state dictionary, in the first model's order. Tensors that share memory in the base (tied weights)
        stay equal. Tensors that are not floating point (step
        counters, position ids) must be equal in all models and are copied.

    Raises:
        MergeError: as for `merge_tensors`. Errors about a tensor's data name the tensor.
    """
    items = models.items() if isinstance(models, Mapping) else enumerate(as_list("models", models))
    states = {key: _state_dict(key, model) for key, model in items}
    if base is not None and base not in states:
        raise MergeError(f"base {base!r} is none of the models: {', '.join(map(repr, states))}")
    if not states:
        raise MergeError("there are no models to merge")
    names = list(next(iter(states.values())))
    common = set.intersection(*(set(s) for s in states.values()))
    for key, state in states.items():
        if strict and set(state) != common:
            extra = ", ".join(sorted(set(state) - common)[:5])
            raise MergeError(f"model {key!r} has tensors that not all models have: {extra}")

    merged: dict[str, torch.Tensor] = {}
    merges: dict[str, InMemoryMerge] = {}
    base_index = None if base is None else list(states).index(base)
    drawn_as = _first_names(next(iter(states.values())) if base is None else states[base])
    for name in names:
        if name not in common:
            continue
        tensors = [state[name] for state in states.values()]
        if not all(t.is_floating_point() for t in tensors):
            first = tensors[0]
            if not all(t.dtype == first.dtype and torch.equal(first, t) for t in tensors[1:]):
                raise MergeError(
                    f"tensor {name} is not floating point and differs between the models"
                )
            merged[name] = first.clone()
            continue
        with _named(name):
            merges[name] = merge = InMemoryMerge.check(
                tensors,
                method,
                base_index=base_index,
                parameters=parameters,
                ids=list(states),
                dtype=dtype,
                out_dtype=out_dtype,
                backend=backend,
                threads=threads,
                nonfinite=nonfinite,
                surveys=surveys,
                random_seed=random_seed,
                name=drawn_as[name],
            )
            if not merge.is_small:
                merge.start()
        merged[name] = merge.result
    start_together([merge for merge in merges.values() if merge.is_small])
    for name, merge in merges.items():
        with _named(name):
            merge.finish()
    return merged


def _first_names(state: StateDict) -> dict[str, str]:
    """Return, by name, the first name of the same memory: tied tensors draw the same random masks and stay equal."""
    first: dict[object, str] = {}
    names = {}
    for name, t in state.items():
        if t.layout is torch.strided and t.numel() and t.device.type != "meta":
            names[name] = first.setdefault((t.data_ptr(), t.shape, t.stride(), t.dtype), name)
        else:
            names[name] = name
    return names


@contextmanager
def _named(tensor: str) -> Iterator[None]:
    """Prefix errors with the tensor's name, except errors about parameters."""
    try:
        yield
    except ConfigError:
        raise
    except MergeError as error:
        raise MergeError(f"tensor {tensor}: {error}") from error


def _state_dict(key: Hashable, model: StateDict | torch.nn.Module) -> StateDict:
    """Return the state dictionary of `model`. Raises TensorTypeError, naming `key`, if it has none."""
    state = model.state_dict() if isinstance(model, torch.nn.Module) else model
    if not isinstance(state, Mapping):
        raise TensorTypeError(
            f"model {key!r} is neither a module nor a mapping of names to tensors"
        )
    for name, tensor in state.items():
        check_tensor(f"model {key!r}: {name}", tensor)
    return state
