"""What a merge method is: its parameters, and its rule for one tensor.

A method is a record, not a code path: `survey` and `fuse` do the arithmetic of all of them. What differs is what a
rule asks of the one and tells the other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..backends import FuseParams, SurveyResult
from ..backends.requests import Request
from ..errors import ConfigError

Scalar = bool | float | str

# Numbers are fp32's in the end.
_MOST = float.fromhex("0x1.fffffep127")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a merge method.

    Attributes:
        default: None: it may be left out, and then is None, or it is `required`.
        per_model: each model that is merged has a value of its own; else all share one.
        idle: it changes nothing here; a config that gives another value than the default is mistaken.
    """

    name: str
    kind: Literal["float", "int", "bool", "choice"]
    default: Scalar | None
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    per_model: bool = False
    required: bool = False
    idle: bool = False

    def validate(self, value: Any, where: str) -> Scalar:
        """Return `value` as this parameter's type, or raise ConfigError naming `where` it stands."""
        if self.kind == "bool":
            if isinstance(value, bool):
                return value
            raise ConfigError(f"{where}: must be true or false, not {value!r}")
        if self.kind == "choice":
            if value in self.choices:
                return str(value)
            raise ConfigError(f"{where}: must be one of {', '.join(self.choices)}, not {value!r}")
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not self.low <= number <= self.high or abs(number) > _MOST:
            raise ConfigError(f"{where}: must be {self._allowed}, not {value!r}")
        if self.kind == "int":
            if number != int(number):
                raise ConfigError(f"{where}: must be {self._allowed}, not {value!r}")
            return int(number)
        return number

    @property
    def _allowed(self) -> str:
        noun = "a whole number" if self.kind == "int" else "a number"
        if self.low == -math.inf and self.high == math.inf:
            return noun
        if self.high == math.inf:
            return f"{noun} of at least {self.low:g}"
        return f"{noun} in [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class Target:
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
    ) -> Target:
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


def by_column(rule: Rule, target: Target) -> Rule:
    """The rule that merges every column of `target` by `rule`; of nothing, and of one dimension, it is `rule`."""
    columns = target.numel // max(target.rows, 1)
    if columns <= 1:
        return rule
    return ByRow(rule, 1) if target.rows == 1 else ByColumn(rule, target.rows, columns)


#: A method's parameters for one tensor: of a per-model one a value for each model, in order.
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """One merge method.

    Attributes:
        reference: where it comes from.
        base: whether it needs a base model; a base that is "ignored" is a model like the others.
        least, most: how many models it merges, the base not counted unless it is ignored.
        rule: from parameters and a tensor to its rule. Raises ConfigError.
    """

    name: str
    reference: str
    parameters: dict[str, Parameter]
    rule: Callable[[Values, Target], Rule]
    base: Literal["required", "optional", "ignored"] = "required"
    least: int = 1
    most: int | None = None

    def takes(self, models: int) -> bool:
        """Whether it merges so many, beside a base."""
        return models >= self.least and (self.most is None or models <= self.most)

    @property
    def counts(self) -> str:
        """How many models it merges, in words."""
        beside = "" if self.base == "ignored" else " beside the base"
        if self.least == self.most:
            return f"exactly {self.least} model{'s' * (self.least > 1)}{beside}"
        most = "" if self.most is None else f" and at most {self.most}"
        return f"at least {self.least} model{'s' * (self.least > 1)}{most}{beside}"


def method(
    name: str,
    reference: str,
    rule: Callable[[Values, Target], Rule],
    *parameters: Parameter,
    base: Literal["required", "optional", "ignored"] = "required",
    least: int = 1,
    most: int | None = None,
) -> Method:
    """A Method of these parameters."""
    return Method(name, reference, {p.name: p for p in parameters}, rule, base, least, most)


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
