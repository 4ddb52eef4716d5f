"""Merging in memory: torch tensors, state dictionaries, modules.

Signatures follow mergekit 0.1.5's in-memory functions, so that one program can call both.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from .arrays import Array
from .backends import FuseParams, GpuBackend, OnDevice, SurveyResult, can_enqueue
from .errors import ConfigError, MergeError, did_you_mean
from .methods import METHODS, NONFINITE, Scalar
from .ops import (
    as_arrays,
    check_dtypes,
    engine_for,
    enqueue_into,
    fuse_into,
    output_for,
    promoted,
)
from .resident import ResidentSurveys
from .threads import resolve_threads
from .weights import sce_params

StateDict = Mapping[str, torch.Tensor]


def merge_tensors(
    tensors: Sequence[torch.Tensor],
    method: str,
    *,
    base_index: int,
    parameters: Mapping[str, Any] | None = None,
    ids: Sequence[Hashable] | None = None,
    dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
    out: torch.Tensor | None = None,
    threads: int | None = None,
    nonfinite: str = "error",
    surveys: ResidentSurveys | None = None,
) -> torch.Tensor:
    """Merge the tensors that several models have under one name.

    Args:
        tensors: one shape (0-d and empty included), each bf16, fp16 or fp32, contiguous or not, all on the CPU
            or on one NVIDIA GPU (at most 17 there).
        method: "sce".
        base_index: which of `tensors` is the base; the order of the others is the order of the sums.
        parameters: the method's; for sce `select_topk` in [0, 1] (default 1) and `variant`, "fuseo1"
            (default) or "mergekit".
        ids: what errors call the tensors; default: their indices.
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

    On a GPU the merge is enqueued on the current stream. "error" waits for it, once. "propagate" waits for
    nothing, except for a survey that is new to `surveys`: without `surveys`, and after one call that loads the
    kernels, `torch.cuda.graph` can capture it.

    Returns:
        A tensor of the base's shape, without autograd history. The inputs are untouched.

    Raises:
        MergeError: bad input, with what is wrong and where.

    Source: SCE, arXiv 2408.07990.
    """
    values = resolve_parameters(method, parameters)
    check_dtypes(dtype=dtype, out_dtype=out_dtype)
    if not -len(tensors) <= base_index < len(tensors):
        raise MergeError(f"base_index {base_index}, but there are {len(tensors)} tensors")
    if nonfinite not in NONFINITE:
        raise MergeError(f"nonfinite: must be one of {', '.join(NONFINITE)}, not {nonfinite!r}")
    if ids is None:
        names = [f"tensor {i}" for i in range(len(tensors))]
    elif len(ids) == len(tensors):
        names = [f"model {key!r}" for key in ids]
    else:
        raise MergeError(f"{len(ids)} ids for {len(tensors)} tensors")
    ordered = list(tensors)
    ordered.insert(0, ordered.pop(base_index))
    names.insert(0, names.pop(base_index))
    inputs = as_arrays(ordered, names)
    wanted = out_dtype or dtype or (promoted(tensors) if out is None else out.dtype)
    result = output_for(ordered, wanted, out)

    engine, threads = engine_for(inputs, backend), resolve_threads(threads)
    topk = float(values["select_topk"])
    known = surveys.find(ordered, topk) if surveys is not None else None

    def take(survey: SurveyResult) -> SurveyResult:
        """Keep a survey that is new, and refuse what it found."""
        if surveys is not None and survey is not known:
            surveys.keep(ordered, topk, survey)
        if nonfinite == "error":
            _refuse_nonfinite(survey.nonfinite, names)
        return survey

    if known is not None:
        take(known)
    if can_enqueue(engine):
        pending = _enqueue(engine, inputs, known, values, result)
        if nonfinite == "propagate" and (surveys is None or known is not None):
            return result
        survey, written = engine.result(pending)
        if known is None:
            take(survey)
    else:
        survey = known or take(engine.survey(inputs, topk, threads))
        params = _params(survey, inputs[0].numel, values)
        written = fuse_into(engine, inputs, params, result, threads)
    if written and nonfinite == "error":
        raise MergeError(
            f"{written} merged elements overflow {str(wanted).removeprefix('torch.')}; "
            'choose a wider out_dtype, or nonfinite="propagate"'
        )
    return result


def merge_state_dicts(
    models: Mapping[Hashable, StateDict | torch.nn.Module] | Sequence[StateDict | torch.nn.Module],
    method: str,
    *,
    base: Hashable,
    parameters: Mapping[str, Any] | None = None,
    strict: bool = True,
    dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
    threads: int | None = None,
    nonfinite: str = "error",
    surveys: ResidentSurveys | None = None,
) -> dict[str, torch.Tensor]:
    """Merge modules or state dictionaries, name by name.

    Args:
        models: by id, or a sequence (then the ids are 0, 1, ...), the base among them.
        base: the base's id.
        strict: every model must have the same names; else the names that all of them have are merged.
        method, parameters, dtype, out_dtype, backend, threads, nonfinite, surveys: as for
            `merge_tensors`.

    Returns:
        The merged state dictionary, in the first model's order. Tensors that are not floating point (step
        counters, position ids) must be equal in all models and are copied.

    Raises:
        MergeError: bad input; the message names the tensor and the models.
    """
    items = list(models.items()) if isinstance(models, Mapping) else list(enumerate(models))
    states = {key: _state_dict(key, model) for key, model in items}
    if base not in states:
        raise MergeError(f"base {base!r} is none of the models: {', '.join(map(repr, states))}")
    if len(states) < 2:
        raise MergeError("a merge needs a base and at least one other model")
    names = list(next(iter(states.values())))
    everywhere = set.intersection(*(set(s) for s in states.values()))
    for key, state in states.items():
        if strict and set(state) != everywhere:
            extra = ", ".join(sorted(set(state) - everywhere)[:5])
            raise MergeError(f"model {key!r} has tensors that not all models have: {extra}")

    merged = {}
    base_index = list(states).index(base)
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
            merged[name] = tensors[base_index].clone()
            continue
        try:
            merged[name] = merge_tensors(
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
            )
        except ConfigError:
            raise
        except MergeError as error:
            raise MergeError(f"tensor {name}: {error}") from error
    return merged


def resolve_parameters(method: str, parameters: Mapping[str, Any] | None) -> dict[str, Scalar]:
    """Every parameter of `method`, as given or by default. Raises ConfigError."""
    if method not in METHODS:
        raise ConfigError(f"merge method {method!r}: this version has {', '.join(METHODS)}")
    record = METHODS[method]
    values: dict[str, Scalar] = {name: p.default for name, p in record.parameters.items()}
    for name, value in (parameters or {}).items():
        if name not in record.parameters:
            raise ConfigError(
                f"{method} has no parameter {name!r}{did_you_mean(name, record.parameters)}"
            )
        values[name] = record.parameters[name].validate(value, name)
    return values


def _enqueue(
    engine: GpuBackend,
    inputs: Sequence[Array],
    survey: SurveyResult | None,
    values: Mapping[str, Scalar],
    out: torch.Tensor,
) -> OnDevice:
    """The whole merge, by a survey of its own if none is given, on the current stream."""
    if survey is None:
        topk, variant = float(values["select_topk"]), str(values["variant"])
        pending = engine.enqueue_survey(inputs, topk, variant)
    else:
        pending = engine.place(inputs, _params(survey, inputs[0].numel, values))
    enqueue_into(engine, inputs, pending, out)
    return pending


def _params(survey: SurveyResult, numel: int, values: Mapping[str, Scalar]) -> FuseParams:
    return sce_params(survey, numel, float(values["select_topk"]), str(values["variant"]))


def _refuse_nonfinite(counts: Sequence[int], names: Sequence[str]) -> None:
    *by_model, overflows = counts
    bad = [f"{name} has {n}" for name, n in zip(names, by_model, strict=True) if n]
    if bad:
        raise MergeError(
            f"NaN or infinite elements: {', '.join(bad)}; "
            'mend the checkpoint, or pass nonfinite="propagate" to go on'
        )
    if overflows:
        raise MergeError(f"at {overflows} elements the task vectors overflow fp32")


def _state_dict(key: Hashable, model: StateDict | torch.nn.Module) -> StateDict:
    state = model.state_dict() if isinstance(model, torch.nn.Module) else model
    if not isinstance(state, Mapping) or not all(
        isinstance(t, torch.Tensor) for t in state.values()
    ):
        raise MergeError(f"model {key!r} is neither a module nor a mapping of names to tensors")
    return state
