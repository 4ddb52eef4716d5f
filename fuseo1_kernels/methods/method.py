"""Merge methods: each is a record of its parameters and its rule for one tensor.

A method is not a code path: `survey` and `fuse` do the arithmetic of all methods. A rule only says what to survey, and
with which parameters to fuse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ConfigError, counted, did_you_mean
from .rule import Rule, TensorSpec

Scalar = bool | float | str

# The largest finite fp32: parameters may be rounded to fp32.
_MOST = float.fromhex("0x1.fffffep127")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a merge method.

    Attributes:
        default: its value if it is left out; None also for one that is `required`.
        per_model: each merged model has its own value; otherwise all share one.
        idle: it has no effect here; a config that gives it another value than the default is mistaken.
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
        """Return `value` as this parameter's type. Raises ConfigError that names `where` the value is."""
        if self.kind == "bool":
            if isinstance(value, (bool, int, float)) and value in (0, 1):
                return bool(value)
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


#: A method's parameters for one tensor; a per-model one is a tuple of one value per model, in order.
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """One merge method.

    Attributes:
        reference: the URL of its source.
        base: whether it needs a base model; if "ignored", the base is a model like the others.
        least, most: how many models it merges, not counting the base unless that is ignored.
        rule: makes the rule from parameters and a tensor. Raises ConfigError.
    """

    name: str
    reference: str
    parameters: dict[str, Parameter]
    rule: Callable[[Values, TensorSpec], Rule]
    base: Literal["required", "optional", "ignored"] = "required"
    least: int = 1
    most: int | None = None

    def takes(self, models: int) -> bool:
        """Whether it merges so many models, besides a base."""
        return models >= self.least and (self.most is None or models <= self.most)

    def lacks(self, name: object) -> str:
        """Return the message for a parameter that it does not have."""
        hint = did_you_mean(name, self.parameters) if self.parameters else "; it has none at all"
        return f"{self.name} has no parameter {name!r}{hint}"

    def counts(self, base: str | None = "the base") -> str:
        """Return in words how many models it merges; `base`: what the base is called, None: there is none."""
        beside = "" if base is None or self.base == "ignored" else f" beside {base}"
        if self.least == self.most:
            return f"exactly {counted(self.least, 'model')}{beside}"
        most = "" if self.most is None else f" and at most {self.most}"
        return f"at least {counted(self.least, 'model')}{most}{beside}"


def method(
    name: str,
    reference: str,
    rule: Callable[[Values, TensorSpec], Rule],
    *parameters: Parameter,
    base: Literal["required", "optional", "ignored"] = "required",
    least: int = 1,
    most: int | None = None,
) -> Method:
    """Make a Method of these parameters."""
    return Method(name, reference, {p.name: p for p in parameters}, rule, base, least, most)
