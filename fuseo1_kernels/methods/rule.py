"""Rules: what a method asks surveys to learn of one tensor, and what it has `fuse` apply."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..backends.contract import FuseParams, Request
from ..backends.results import SurveyResult


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that is to be merged, as far as a rule needs to know it.

    Attributes:
        name: keys its random masks, with `models` and `seed`.
        numel: how many elements it has.
        rows: how long its first dimension is.
        row: how many of them follow one another in its last dimension.
        models: the models beside the base, in order; a method that ignores the base takes the first for it.
        has_base: whether there is a base beside them.
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
        """A tensor of that shape; one without dimensions is a row of one element."""
        rows, row = (shape[0], shape[-1]) if shape else (1, 1)
        return cls(name, math.prod(shape), rows, row, tuple(models), has_base, seed)


class Rule(Protocol):
    """A method's way with one tensor; a frozen dataclass, whose repr says all that the result depends on.

    The kinds of requests and of selections do not depend on what was learned: who plans memory finds them out before.
    """

    def request(self, learned: Sequence[SurveyResult]) -> Request | None:
        """What is to be surveyed next, given what was learned so far; None: nothing more."""

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        """What fuse applies, when everything was learned. Raises MergeError."""


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
class ByVector(ABC):
    """Vectors of a tensor are merged each by itself, as if it were a tensor, by the same rule."""

    rule: Rule

    @property
    @abstractmethod
    def length(self) -> int:
        """Elements of a vector."""

    def request(self, learned: Sequence[SurveyResult]) -> Request | None:
        return self.rule.request(learned)

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        return self.rule.params(learned)


@dataclass(frozen=True)
class ByRow(ByVector):
    """Every row of `row` elements is merged by itself."""

    row: int

    @property
    def length(self) -> int:
        return self.row


@dataclass(frozen=True)
class ByColumn(ByVector):
    """Every column is merged by itself.

    Column k is the `rows` elements k, k + columns, k + 2 columns, ...: all along the first dimension, however many
    dimensions there are. A rule of one column, or of columns of one element, is another: `by_column`.
    """

    rows: int
    columns: int

    @property
    def length(self) -> int:
        return self.rows


def by_column(rule: Rule, target: TensorSpec) -> Rule:
    """The rule that merges every column of `target` by `rule`; of nothing, and of one dimension, it is `rule`."""
    columns = target.numel // max(target.rows, 1)
    if columns <= 1:
        return rule
    return ByRow(rule, 1) if target.rows == 1 else ByColumn(rule, target.rows, columns)


def of(tensor: str) -> str:
    """Whose something is, if that has a name."""
    return f" of tensor {tensor}" if tensor else ""


#: Sums of weights below this are taken for 0, as in mergekit 0.1.5: decimal weights that cancel leave a little.
LEAST_TOTAL = 1e-8


def combination(factors: Sequence[float], scale: float = 1.0) -> FuseParams:
    """scale * (factors[0] x_0 + factors[1] x_1 + ...), x_0 being the base that fuse is given.

    As (sum of factors) x_0 + sum of factors[i] (x_i - x_0): what is rounded is small where models are alike.
    """
    return FuseParams(
        tuple(scale * f for f in factors[1:]),
        elect="none",
        divisor=1.0,
        base_scale=scale * math.fsum(factors),
    )
