"""The table of merge methods: which parameters each takes, their defaults and bounds.

A method is a record, not a code path: `ops.survey` and `ops.fuse` do the arithmetic of all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from .errors import ConfigError

Scalar = bool | float | str


@dataclass(frozen=True)
class Parameter:
    """One parameter of a merge method.

    `per_model` says whether each model may have a value of its own; the others are shared by all.
    """

    name: str
    kind: Literal["float", "bool", "choice"]
    default: Scalar
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    per_model: bool = False

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
        if not self.low <= number <= self.high:
            raise ConfigError(
                f"{where}: must be a number in [{self.low:g}, {self.high:g}], not {value!r}"
            )
        return number


@dataclass(frozen=True)
class Method:
    """One merge method: its name, its source and its parameters."""

    name: str
    reference: str
    parameters: dict[str, Parameter]


def _method(name: str, reference: str, *parameters: Parameter) -> Method:
    return Method(name, reference, {p.name: p for p in parameters})


VARIANTS = ("fuseo1", "mergekit")

#: What NaN and infinite elements do to a merge.
NONFINITE = ("error", "propagate")

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        _method(
            "sce",
            "https://arxiv.org/abs/2408.07990",
            Parameter("select_topk", "float", 1.0, low=0.0, high=1.0),
            Parameter("variant", "choice", "fuseo1", choices=VARIANTS),
            # mergekit stores its masks as int8 on request; here there are no masks to store.
            Parameter("int8_mask", "bool", False),
        ),
    )
}

#: Methods that mergekit 0.1.5 has and this version does not: refused by name.
NOT_YET = (
    "arcee_fusion",
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "karcher",
    "linear",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "passthrough",
    "ram",
    "ramplus_tl",
    "slerp",
    "task_arithmetic",
    "ties",
)
