"""Merging in memory: torch tensors, state dictionaries, modules.

Signatures follow mergekit 0.1.5's in-memory functions, so that one program can call both.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import ConfigError, MergeError
from .survey_cache import ResidentSurveys
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
    """Merge the tensors that several models have under one name.

    Args:
        tensors: one shape (0-d and empty included), each bf16, fp16 or fp32, contiguous or not, all on the CPU
            or on one NVIDIA GPU (at most 17 there).
        method: one of fuseo1_kernels.methods.METHODS, such as "sce", "ties" or "slerp" (docs/config.md).
        base_index: which of `tensors` is the base; the order of the others is the order of the sums. None: there is
            none, for the methods that need none.
        parameters: the method's, as docs/config.md lists them. Of one that each model has for itself ("weight",
            "density") one value for all, a sequence of one for each tensor but the base, or a mapping from `ids`.
        ids: what errors call the tensors; default: their indices. Random masks depend on them.
        dtype, out_dtype: the output's dtype, `out_dtype` winning; default: the inputs', promoted.
            Inputs are never rounded to it first.
        backend: "auto", "cpu" or "reference", for tensors on a GPU "cuda" or "triton"; one that is named and
            cannot run is an error.
        out: written in place and returned; overlaps no input. After an error about NaN, infinity or overflow it
            holds what "propagate" returns; but what it held before if the inputs were at fault and that was known
            before fuse: on the CPU always, on a GPU from `surveys`.
        threads: default: all cores this process may use. Never changes a bit of the result.
        nonfinite: "error" (default), or "propagate": an element where any input is NaN or infinite
            becomes NaN and counts for nothing else.
        surveys: is asked for the survey of these tensors, and given it if it is new.
        random_seed, name: with a model's id these key its random masks (DARE); `name` is the tensor's.

    On a GPU an SCE merge is enqueued on the current stream. "error" waits for it, once. "propagate" waits for
    nothing, except for a survey that is new to `surveys`: without `surveys`, and after one call that loads the
    kernels, `torch.cuda.graph` can capture it.

    Returns:
        A tensor of the base's shape, without autograd history. The inputs are untouched.

    Raises:
        MergeError: bad input, with what is wrong and where.

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
    """Merge modules or state dictionaries, name by name.

    Args:
        models: by id, or a sequence (then the ids are 0, 1, ...), the base among them.
        base: the base's id; None: there is none.
        strict: every model must have the same names; else the names that all of them have are merged.
        method, parameters, dtype, out_dtype, backend, threads, nonfinite, surveys, random_seed: as for
            `merge_tensors`.

    Returns:
        The merged state dictionary, in the first model's order. Tensors that are not floating point (step
        counters, position ids) must be equal in all models and are copied.

    On a GPU tensors of up to 65,536 elements are merged together in one launch, and the GPU is waited for when
    everything is enqueued: an error comes then.

    Raises:
        MergeError: bad input; the message names the tensor and the models.
    """
    items = list(models.items()) if isinstance(models, Mapping) else list(enumerate(models))
    states = {key: _state_dict(key, model) for key, model in items}
    if base is not None and base not in states:
        raise MergeError(f"base {base!r} is none of the models: {', '.join(map(repr, states))}")
    if not states:
        raise MergeError("there are no models to merge")
    names = list(next(iter(states.values())))
    everywhere = set.intersection(*(set(s) for s in states.values()))
    for key, state in states.items():
        if strict and set(state) != everywhere:
            extra = ", ".join(sorted(set(state) - everywhere)[:5])
            raise MergeError(f"model {key!r} has tensors that not all models have: {extra}")

    merged: dict[str, torch.Tensor] = {}
    begun: dict[str, InMemoryMerge] = {}
    base_index = None if base is None else list(states).index(base)
    for name in names:
        if name not in everywhere:
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
            begun[name] = merge = InMemoryMerge.check(
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
                name=name,
            )
            if not merge.is_small:
                merge.start()
        merged[name] = merge.result
    start_together([merge for merge in begun.values() if merge.is_small])
    for name, merge in begun.items():
        with _named(name):
            merge.finish()
    return merged


@contextmanager
def _named(tensor: str) -> Iterator[None]:
    """Errors about a tensor's data, not those about parameters, name it."""
    try:
        yield
    except ConfigError:
        raise
    except MergeError as error:
        raise MergeError(f"tensor {tensor}: {error}") from error


def _state_dict(key: Hashable, model: StateDict | torch.nn.Module) -> StateDict:
    state = model.state_dict() if isinstance(model, torch.nn.Module) else model
    if not isinstance(state, Mapping) or not all(
        isinstance(t, torch.Tensor) for t in state.values()
    ):
        raise MergeError(f"model {key!r} is neither a module nor a mapping of names to tensors")
    return state
