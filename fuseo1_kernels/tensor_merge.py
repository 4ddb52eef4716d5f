"""One merge of tensors in memory: checked, started, finished. On a GPU to start it waits for nothing."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from .arrays import Array
from .backends import (
    FuseParams,
    GpuBackend,
    OnDevice,
    Ops,
    SmallBackend,
    SurveyResult,
    can_enqueue,
    can_enqueue_small,
)
from .errors import ConfigError, MergeError, did_you_mean
from .methods import METHODS, NONFINITE, Scalar
from .methods.sce import sce_params
from .ops import (
    as_array,
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


@dataclass
class TensorMerge:
    """A merge of `tensors`, base first, to `result`: `check` makes it, then `start` and `finish` it, in this order.

    Attributes:
        names: what errors call the tensors.
        values: the method's parameters.
    """

    tensors: list[torch.Tensor]
    names: list[str]
    result: torch.Tensor
    values: dict[str, Scalar]
    engine: Ops
    threads: int
    nonfinite: str
    surveys: ResidentSurveys | None
    _inputs: list[Array]
    _known: SurveyResult | None = None
    # Waits for what was enqueued: the survey, and how many outputs are not finite.
    _found: Callable[[], tuple[SurveyResult, int]] | None = None

    @classmethod
    def check(
        cls,
        tensors: Sequence[torch.Tensor],
        method: str,
        *,
        base_index: int,
        parameters: Mapping[str, Any] | None,
        ids: Sequence[Hashable] | None,
        dtype: torch.dtype | None,
        out_dtype: torch.dtype | None,
        backend: str,
        threads: int | None,
        nonfinite: str,
        surveys: ResidentSurveys | None,
        out: torch.Tensor | None = None,
    ) -> TensorMerge:
        """The arguments are those of merge_tensors. Raises MergeError."""
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
        return cls(
            ordered,
            names,
            result,
            values,
            engine_for(inputs, backend),
            resolve_threads(threads),
            nonfinite,
            surveys,
            inputs,
        )

    @property
    def is_small(self) -> bool:
        """Whether others can be merged in the same launch."""
        if not can_enqueue_small(self.engine) or self.surveys is not None:
            return False
        return 0 < self.result.numel() <= self.engine.most_small and self.result.is_contiguous()

    def start(self) -> None:
        """Merge on the CPU, or enqueue the merge on a GPU's current stream. Raises MergeError."""
        if self.surveys is not None:
            self._known = self.surveys.find(self.tensors, self._topk)
        if self._known is not None:
            self._take(self._known)
        if can_enqueue(self.engine):
            self.started(partial(self.engine.result, self._enqueue(self.engine)))
        else:
            survey = self._known or self._take(
                self.engine.survey(self._inputs, self._topk, self.threads)
            )
            params = self._params(survey)
            self._refuse_overflow(
                fuse_into(self.engine, self._inputs, params, self.result, self.threads)
            )

    def started(self, found: Callable[[], tuple[SurveyResult, int]]) -> None:
        """It was enqueued; `found` waits. Copies of what was not contiguous go back to the stream's memory."""
        self._inputs, self._found = [], found

    def finish(self) -> None:
        """Wait for a GPU, if anything is to be learned of it. Raises MergeError."""
        if self._found is None:
            return
        if self.nonfinite == "propagate" and (self.surveys is None or self._known is not None):
            return
        survey, written = self._found()
        if self._known is None:
            self._take(survey)
        self._refuse_overflow(written)

    @property
    def _topk(self) -> float:
        return float(self.values["select_topk"])

    @property
    def _variant(self) -> str:
        return str(self.values["variant"])

    @property
    def kind(self) -> tuple[Ops, torch.device, int, float, str]:
        """What merges in one launch have in common."""
        return self.engine, self.result.device, len(self._inputs), self._topk, self._variant

    @property
    def operands(self) -> tuple[list[Array], Array]:
        """Inputs and output, where `is_small`."""
        return self._inputs, as_array(self.result)

    def _enqueue(self, engine: GpuBackend) -> OnDevice:
        """The whole merge, by a survey of its own if none is known."""
        if self._known is None:
            pending = engine.enqueue_survey(self._inputs, self._topk, self._variant)
        else:
            pending = engine.place(self._inputs, self._params(self._known))
        enqueue_into(engine, self._inputs, pending, self.result)
        return pending

    def _params(self, survey: SurveyResult) -> FuseParams:
        return sce_params(survey, self.result.numel(), self._topk, self._variant)

    def _take(self, survey: SurveyResult) -> SurveyResult:
        """Keep a survey that is new, and refuse what it found."""
        if self.surveys is not None and survey is not self._known:
            self.surveys.keep(self.tensors, self._topk, survey)
        if self.nonfinite == "error":
            _refuse_nonfinite(survey.nonfinite, self.names)
        return survey

    def _refuse_overflow(self, written: int) -> None:
        if written and self.nonfinite == "error":
            raise MergeError(
                f"{written} merged elements overflow {str(self.result.dtype).removeprefix('torch.')}; "
                'choose a wider out_dtype, or nonfinite="propagate"'
            )


def start_together(merges: Sequence[TensorMerge]) -> None:
    """Start merges that are small, in as few launches as can be, on the current streams of their GPUs."""
    kinds: dict[object, list[TensorMerge]] = {}
    for merge in merges:
        kinds.setdefault(merge.kind, []).append(merge)
    for alike in kinds.values():
        engine, _, _, topk, variant = alike[0].kind
        assert can_enqueue_small(engine)
        inputs, outs = zip(*(merge.operands for merge in alike), strict=True)
        launch = _Launch(engine, engine.enqueue_small(inputs, outs, topk, variant))
        for number, merge in enumerate(alike):
            merge.started(partial(launch.result, number))


class _Launch:
    """What several merges left on a GPU."""

    def __init__(self, engine: SmallBackend, pending: OnDevice) -> None:
        self._engine, self._pending = engine, pending

    def result(self, number: int) -> tuple[SurveyResult, int]:
        return self._results[number]

    @cached_property
    def _results(self) -> list[tuple[SurveyResult, int]]:
        return self._engine.results(self._pending)


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
