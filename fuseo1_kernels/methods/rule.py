"""Rules: the surveys that a method requests for one tensor, and the parameters with which it fuses it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..backends.contract import MAX_AVERAGED, AverageParams, FuseParams, Request
from ..backends.results import SurveyResult


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be merged, as rules see it.

    Attributes:
        name: its name, which keys its random masks together with `models` and `seed`.
        numel: its number of elements.
        rows: the size of its first dimension.
        row: the size of its last dimension.
        models: the models besides the base, in order; a method that ignores the base uses the first one as the base.
        has_base: whether there is a base besides them.
    """

    name: str
    numel: int
    rows: int
    row: int
    models: tuple[str, ...]
    has_base: bool
    seed: int = 0

    @classmethod
    def of_shape(
        cls, name: str, shape: Sequence[int], models: Sequence[str], has_base: bool, seed: int
    ) -> TensorSpec:
        """The spec of a tensor of this shape; one without dimensions is a row of one element."""
        rows, row = (shape[0], shape[-1]) if shape else (1, 1)
        return cls(name, math.prod(shape), rows, row, tuple(models), has_base, seed)


class Rule(Protocol):
    """A method's rule for one tensor; a frozen dataclass, whose repr has everything that the result depends on.

    The kinds of requests and of selections do not depend on results, so that memory can be planned before.
    """

    def request(self, learned: Sequence[SurveyResult]) -> Request | None:
        """The next request, given the results so far; None: no more."""

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        """The parameters for fuse, given the results of all requests. Raises MergeError."""


def learn(
    rule: Rule,
    survey: Callable[[Request], SurveyResult],
    check: Callable[[SurveyResult], None],
) -> list[SurveyResult]:
    """Survey whatever `rule` requests, one request after the other.

    `survey` answers a request. `check` sees each answer before the rule does, and raises if the merge must end.
    """
    learned: list[SurveyResult] = []
    while (request := rule.request(learned)) is not None:
        answer = survey(request)
        check(answer)
        learned.append(answer)
    return learned


@dataclass(frozen=True)
class Copied:
    """Copies a tensor of integers, which is the same in all models. Nothing is computed."""

    def request(self, learned: Sequence[SurveyResult]) -> None:
        return None

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        return combination([1.0])


@dataclass(frozen=True)
class Average:
    """Averages any number of inputs: out = (sum of weights[i] * x_i) / divisor, in fp64, rounded once.

    Nothing is surveyed or fused: the op is `average` (csrc/include/fuseo1/average.h).
    """

    weights: tuple[float, ...]
    divisor: float

    def steps(self, at_once: int = MAX_AVERAGED) -> Iterator[tuple[slice, AverageParams]]:
        """Yield which inputs each call of `average` has, at most `at_once`, and its parameters."""
        inputs = len(self.weights)
        for begin in range(0, inputs, at_once):
            part = slice(begin, begin + at_once)
            first, last = begin == 0, part.stop >= inputs
            yield part, AverageParams(self.weights[part], self.divisor, first, last)

    def request(self, learned: Sequence[SurveyResult]) -> None:
        return None

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        return combination([1.0])


@dataclass(frozen=True)
class ByVector(ABC):
    """Merges every vector of a tensor separately, like a tensor, by the same rule."""

    rule: Rule

    @property
    @abstractmethod
    def length(self) -> int:
        """The number of elements of a vector."""

    def request(self, learned: Sequence[SurveyResult]) -> Request | None:
        return self.rule.request(learned)

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        return self.rule.params(learned)


@dataclass(frozen=True)
class ByRow(ByVector):
    """Merges every row of `row` elements separately."""

    row: int

    @property
    def length(self) -> int:
        return self.row


@dataclass(frozen=True)
class ByColumn(ByVector):
    """Merges every column separately.

    Column k is the `rows` elements k, k + columns, k + 2 columns, ...: along the first dimension, however many
    dimensions there are. `by_column` makes simpler rules for a single column, and for columns of one element.
    """

    rows: int
    columns: int

    @property
    def length(self) -> int:
        return self.rows


def by_column(rule: Rule, spec: TensorSpec) -> Rule:
    """The rule that merges every column of `spec` by `rule`: `rule` itself for one dimension, or for no elements."""
    columns = spec.numel // max(spec.rows, 1)
    if columns <= 1:
        return rule
    return ByRow(rule, 1) if spec.rows == 1 else ByColumn(rule, spec.rows, columns)


def of(tensor: str) -> str:
    """A suffix for error messages: ` of tensor NAME`, or nothing without a name."""
    return f" of tensor {tensor}" if tensor else ""


#: Sums of weights below this count as 0, as in mergekit 0.1.5: decimal weights that cancel leave a residue.
LEAST_TOTAL = 1e-8


def combination(factors: Sequence[float], scale: float = 1.0) -> FuseParams:
    """scale * (factors[0] x_0 + factors[1] x_1 + ...), where x_0 is fuse's base.

    Computed as (sum of factors) x_0 + sum of factors[i] (x_i - x_0), which rounds small numbers if models are alike.
    """
    return FuseParams(
        tuple(scale * f for f in factors[1:]),
        elect="none",
        divisor=1.0,
        base_scale=scale * math.fsum(factors),
    )
