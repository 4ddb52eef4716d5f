"""What a merge method is: its parameters, and its rule for one tensor.

A method is a record, not a code path: `survey` and `fuse` do the arithmetic of all of them. What differs is what a
rule asks of the one and tells the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ConfigError
from .rule import Rule, TensorSpec

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
    rule: Callable[[Values, TensorSpec], Rule]
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
    rule: Callable[[Values, TensorSpec], Rule],
    *parameters: Parameter,
    base: Literal["required", "optional", "ignored"] = "required",
    least: int = 1,
    most: int | None = None,
) -> Method:
    """A Method of these parameters."""
    return Method(name, reference, {p.name: p for p in parameters}, rule, base, least, most)
