"""Linear: a weighted mean of models (model soups, arXiv 2203.05482); passthrough: one model, times `scale`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..backends.contract import MAX_TARGETS, FuseParams
from ..backends.results import SurveyResult
from ..errors import ConfigError
from .method import Parameter, Values, method
from .rule import LEAST_TOTAL, Average, Rule, TensorSpec, combination, of


@dataclass(frozen=True)
class Linear:
    """out = (sum of weight_i x_i) / divisor; the divisor is the sum of the weights (normalize) or 1."""

    weights: tuple[float, ...]
    normalize: bool

    def request(self, learned: Sequence[SurveyResult]) -> None:
        return None

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        if not self.normalize:
            return combination(self.weights)
        return FuseParams(self.weights[1:], elect="none", divisor=math.fsum(self.weights))


def _linear(values: Values, spec: TensorSpec) -> Rule:
    weights, total = values["weight"], math.fsum(values["weight"])
    if values["normalize"] and abs(total) < LEAST_TOTAL:
        raise ConfigError(
            f"linear: the weights{of(spec.name)} sum to 0; change them, or set normalize: false"
        )
    if len(weights) > MAX_TARGETS + 1:
        return Average(weights, total if values["normalize"] else 1.0)
    return Linear(weights, values["normalize"])


def _passthrough(values: Values, _spec: TensorSpec) -> Linear:
    (scale,) = values["scale"]
    return Linear((1.0 if scale is None else scale,), False)


LINEAR = method(
    "linear",
    "https://arxiv.org/abs/2203.05482",
    _linear,
    Parameter("weight", "float", None, per_model=True, required=True),
    Parameter("normalize", "bool", True),
    base="ignored",
)

PASSTHROUGH = method(
    "passthrough",
    "https://github.com/arcee-ai/mergekit",
    _passthrough,
    Parameter("scale", "float", None, per_model=True),
    base="ignored",
    most=1,
)
