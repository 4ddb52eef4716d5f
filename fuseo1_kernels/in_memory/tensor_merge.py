"""One merge of tensors in memory: `check`, `start`, `finish`. On a GPU, `start` only enqueues a merge by SCE."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from typing import Any

import torch

from ..backends.arrays import Array, Buffer
from ..backends.contract import MAX_AVERAGED, Request
from ..backends.interface import (
    GpuBackend,
    OnDevice,
    Ops,
    can_average,
    can_enqueue,
    can_enqueue_small,
)
from ..backends.results import SceResult, SurveyResult
from ..errors import MergeError
from ..methods.method import Method
from ..methods.nonfinite import NonfiniteGuard, check_nonfinite, count_request
from ..methods.parameters import check_seed, resolve_method, resolve_parameters
from ..methods.rule import Average, ByColumn, ByVector, Rule, TensorSpec, learn
from ..methods.sce import Sce
from ..system import resolve_threads
from .ops import (
    as_array,
    as_arrays,
    average_on_device,
    backend_for,
    check_dtypes,
    check_number,
    columns_of,
    dense,
    dense_columns,
    enqueue_into,
    output_for,
    promoted,
)
from .survey_cache import ResidentSurveys
from .tensor_kinds import as_list, check_tensor


class TensorGuard(NonfiniteGuard):
    """Decides on the non-finite elements of one merge of tensors."""

    def __init__(self, mode: str, names: Sequence[str], dtype: torch.dtype) -> None:
        """`names`: the inputs' names in errors, base first. `dtype`: the output's."""
        super().__init__(mode)
        self._names = names
        self._dtype = dtype

    def refuse_inputs(self, counts: Sequence[int]) -> None:
        *by_model, overflows = counts
        # A single input was surveyed as base and as target.
        bad = [f"{name} has {n}" for name, n in zip(self._names, by_model, strict=False) if n]
        if bad:
            raise MergeError(
                f"NaN or infinite elements: {', '.join(bad)}; "
                'mend the checkpoint, or pass nonfinite="propagate" to go on'
            )
        if overflows:
            raise MergeError(f"at {overflows} elements the task vectors overflow fp32")

    def refuse_overflow(self, written: int) -> None:
        raise MergeError(
            f"{written} merged elements overflow {str(self._dtype).removeprefix('torch.')}; "
            'choose a wider out_dtype, or nonfinite="propagate"'
        )


@dataclass
class InMemoryMerge:
    """A merge of tensors. `check` makes one; then call `start` and `finish`, in this order.

    Attributes:
        tensors: the inputs, base first.
        names: the inputs' names in errors.
        result: the output.
        rule: the method's rule for the tensor.
        backend: runs survey and fuse.
        threads: number of threads on the CPU.
        surveys: finds and keeps surveys, or None.
    """

    tensors: list[torch.Tensor]
    names: list[str]
    result: torch.Tensor
    rule: Rule
    backend: Ops
    threads: int
    surveys: ResidentSurveys | None
    _guard: TensorGuard
    _inputs: list[Array]
    # Whether `result` is a new tensor: until fuse writes it, surveys may use its memory.
    _is_new: bool
    _kept: SurveyResult | None = None  # from `surveys`
    # Waits for the enqueued merge; returns its survey and the number of non-finite outputs. None: nothing is enqueued.
    _wait: Callable[[], tuple[SceResult, int]] | None = None

    @classmethod
    def check(
        cls,
        tensors: Sequence[torch.Tensor],
        method: str,
        *,
        base_index: int | None,
        parameters: Mapping[str, Any] | None,
        ids: Sequence[Hashable] | None,
        dtype: torch.dtype | None,
        out_dtype: torch.dtype | None,
        backend: str,
        threads: int | None,
        nonfinite: str,
        surveys: ResidentSurveys | None,
        random_seed: int = 0,
        name: str = "",
        out: torch.Tensor | None = None,
    ) -> InMemoryMerge:
        """Check the arguments of merge_tensors and return the merge. Raises MergeError."""
        tensors = as_list("tensors", tensors)
        if out is not None:
            check_tensor("out", out)
        record = resolve_method(method)
        check_dtypes(dtype=dtype, out_dtype=out_dtype)
        check_nonfinite(nonfinite)
        if ids is not None and len(ids) != len(tensors):
            raise MergeError(f"{len(ids)} ids for {len(tensors)} tensors")
        if ids is not None and len(set(map(str, ids))) < len(ids):
            raise MergeError(f"ids must differ, as text too: {list(ids)!r}")
        check_seed(random_seed)
        order = _order(record, len(tensors), base_index)
        names = [f"tensor {i}" if ids is None else f"model {ids[i]!r}" for i in order]
        ordered = [tensors[i] for i in order]
        has_base = base_index is not None and record.base != "ignored"
        merged = [i if ids is None else ids[i] for i in order[has_base:]]
        values = resolve_parameters(method, parameters, merged)
        inputs = as_arrays(ordered, names, least=1, any_number=True)
        result_dtype = out_dtype or dtype or (promoted(tensors) if out is None else out.dtype)
        result = output_for(ordered, result_dtype, out)
        spec = TensorSpec.of_shape(name, result.shape, [*map(str, merged)], has_base, random_seed)
        rule = record.rule(values, spec)
        if not isinstance(rule, Average):
            check_number(ordered)
        return cls(
            ordered,
            names,
            result,
            rule,
            backend_for(inputs, backend),
            resolve_threads(threads),
            surveys,
            TensorGuard(nonfinite, names, result.dtype),
            inputs,
            out is None,
        )

    @property
    def is_small(self) -> bool:
        """Whether the merge can share a launch with others (`start_together`)."""
        if not can_enqueue_small(self.backend) or self.surveys is not None:
            return False
        if not isinstance(self.rule, Sce):
            return False
        return 0 < self.result.numel() <= self.backend.most_small and self.result.is_contiguous()

    def start(self) -> None:
        """Merge; for SCE on a GPU, only enqueue the merge on the current stream. Raises MergeError."""
        if can_enqueue(self.backend) and isinstance(self.rule, Sce):
            self._kept = self._find(self.rule.select_topk)
            if self._kept is not None:
                self._guard.check_survey(self._kept)
            self.enqueued(partial(self.backend.result, self._enqueue(self.backend, self.rule)))
            return
        with self._laid_out() as (inputs, out):
            written = sum(self._merge(*part) for part in self._parts(inputs, out))
        self._guard.check_output(written, (), self._count_nonfinite)

    def _count_nonfinite(self) -> SurveyResult:
        """Survey all inputs. A survey needs a target, so a single input is given as base and as target."""
        if isinstance(self.rule, Average):
            counts = [self._count_few(part) for part, _ in self.rule.steps()]
            return SurveyResult(passes=1, nonfinite=(*chain(*counts), 0))
        inputs = self._inputs * 2 if len(self._inputs) == 1 else self._inputs
        return self.backend.survey(inputs, count_request(len(inputs)), self.threads)

    def _count_few(self, part: slice) -> tuple[int, ...]:
        """Count the non-finite elements of each of a few inputs."""
        few = self._inputs[part]
        inputs = few * 2 if len(few) == 1 else few
        survey = self.backend.survey(inputs, count_request(len(inputs)), self.threads)
        return survey.nonfinite[: len(few)]

    @contextmanager
    def _laid_out(self) -> Iterator[tuple[list[Array], Array]]:
        """Yield inputs and output in a layout in which each part is contiguous: column-major for rules by column."""
        if isinstance(self.rule, ByColumn):
            rows = self.rule.rows
            with dense_columns(self.result, rows) as out:
                yield [columns_of(tensor, rows) for tensor in self.tensors], out
        else:
            with dense(self.result) as out:
                yield self._inputs, out

    def _parts(self, inputs: list[Array], out: Array) -> Iterator[tuple[list[Array], Array]]:
        """Yield inputs and output of each part that is merged independently: every row, every column, or everything."""
        if not isinstance(self.rule, ByVector):
            yield inputs, out
            return
        length = self.rule.length
        for start in range(0, out.numel, max(length, 1)):
            yield [x.part(start, length) for x in inputs], out.part(start, length)

    def _merge(self, inputs: list[Array], out: Array) -> int:
        """Survey and fuse one part; return the number of output elements that are infinite or NaN."""
        if isinstance(self.rule, Average):
            return self._average(inputs, self.rule, out)
        learned = learn(
            self.rule, lambda request: self._survey(inputs, request, out), self._guard.check_survey
        )
        return self.backend.fuse(inputs, self.rule.params(learned), out, 0, self.threads)

    def _average(self, inputs: list[Array], rule: Average, out: Array) -> int:
        if not can_average(self.backend):
            return average_on_device([x.owner for x in inputs], rule, out.owner)
        sums = Buffer(8 * out.numel if len(inputs) > MAX_AVERAGED else 0)
        written = 0
        for part, params in rule.steps():
            written = self.backend.average(inputs[part], params, sums, out, self.threads)
        return written

    def enqueued(self, wait: Callable[[], tuple[SceResult, int]]) -> None:
        """Note that the merge is enqueued. Contiguous copies of inputs are freed; the stream may reuse their memory.

        `wait` waits for the merge and returns its survey and the number of non-finite outputs.
        """
        self._inputs, self._wait = [], wait

    def finish(self) -> None:
        """Wait for the GPU if elements may be refused or a survey must be kept. Raises MergeError."""
        if self._wait is None:
            return
        if not self._guard.refuses and (self.surveys is None or self._kept is not None):
            return
        survey, written = self._wait()
        if self._kept is None:
            self._keep(self._sce.select_topk, survey)
            self._guard.check_survey(survey)
        self._guard.check_output(written, [survey], lambda: survey)

    @property
    def _sce(self) -> Sce:
        assert isinstance(self.rule, Sce)
        return self.rule

    @property
    def kind(self) -> tuple[Ops, torch.device, int, float, str]:
        """The properties that all merges of one launch must share."""
        rule = self._sce
        return (
            self.backend,
            self.result.device,
            len(self._inputs),
            rule.select_topk,
            rule.variant,
        )

    @property
    def operands(self) -> tuple[list[Array], Array]:
        """The inputs and the output of a small merge."""
        return self._inputs, as_array(self.result)

    def _enqueue(self, backend: GpuBackend, rule: Sce) -> OnDevice:
        """Enqueue the fuse, after a survey unless one was kept; return the survey on the device."""
        if self._kept is None:
            survey = backend.enqueue_survey(self._inputs, rule.select_topk, rule.variant)
        else:
            survey = backend.place(self._inputs, rule.params([self._kept]))
        enqueue_into(backend, self._inputs, survey, self.result)
        return survey

    def _survey(self, inputs: list[Array], request: Request, out: Array) -> SurveyResult:
        """Answer a request, with a kept survey if there is one. Only surveys of whole tensors are kept."""
        whole = inputs is self._inputs
        survey = self._find(request) if whole else None
        if survey is None:
            lent = out if whole and self._is_new else None
            survey = self.backend.survey(inputs, request, self.threads, lent=lent)
            if whole:
                self._keep(request, survey)
        return survey

    def _find(self, request: Request) -> SurveyResult | None:
        return self.surveys.find(self.tensors, request) if self.surveys is not None else None

    def _keep(self, request: Request, survey: SurveyResult) -> None:
        if self.surveys is not None:
            self.surveys.keep(self.tensors, request, survey)


def start_together(merges: Sequence[InMemoryMerge]) -> None:
    """Start small merges in one launch per kind, on the current streams of their GPUs."""
    kinds: dict[object, list[InMemoryMerge]] = {}
    for merge in merges:
        kinds.setdefault(merge.kind, []).append(merge)
    for group in kinds.values():
        backend, _, _, topk, variant = group[0].kind
        assert can_enqueue_small(backend)
        inputs, outs = zip(*(merge.operands for merge in group), strict=True)
        # Cached: the first merge to finish waits for the whole launch.
        results = cache(
            partial(backend.results, backend.enqueue_small(inputs, outs, topk, variant))
        )
        for number, merge in enumerate(group):
            merge.enqueued(partial(_result, results, number))


def _result(
    results: Callable[[], list[tuple[SceResult, int]]], number: int
) -> tuple[SceResult, int]:
    return results()[number]


def _order(method: Method, tensors: int, base_index: int | None) -> list[int]:
    """Return the indices of the tensors in merge order: the base first. Raises MergeError."""
    order = list(range(tensors))
    if base_index is not None:
        if not -tensors <= base_index < tensors:
            raise MergeError(f"base_index {base_index}, but there are {tensors} tensors")
        if method.base != "ignored":
            order.insert(0, order.pop(base_index))
    elif method.base == "required":
        raise MergeError(f"{method.name} needs a base: give base_index")
    merged = tensors - (base_index is not None and method.base != "ignored")
    if not method.takes(merged):
        raise MergeError(f"{method.name} merges {method.counts()}, not {merged}")
    return order
