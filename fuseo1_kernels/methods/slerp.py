"""SLERP and NuSLERP: a point on the arc between two models, or between their task vectors.

    slerp:   out = c_0 b + c_1 x,  c = sin((1-t) angle) / sin(angle), sin(t angle) / sin(angle)
    nuslerp: the same for two targets, or for their task vectors, where t is the second's share of the weights

Both follow a straight line where the two are nearly parallel or opposed. Source: https://en.wikipedia.org/wiki/Slerp.
The bounds for that, and for lengths that count as 0, are those of mergekit 0.1.5; but in nuslerp two vectors are
opposed as soon as rounding hides the direction of the arc (sphere.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..backends.contract import FuseParams, Gram
from ..backends.results import GramResult, SurveyResult, expect
from .method import Parameter, Values, method
from .rule import ByRow, Rule, TensorSpec, by_column, combination
from .sphere import ROUNDING, arc, as_cosine

_NEARLY_PARALLEL = 0.9995
_LEAST_SLERP_LENGTH = 1e-8
_LEAST_NUSLERP_LENGTH = 1e-7
_LEAST_NUSLERP_SINE = 1e-8
_LEAST_WEIGHT = 1e-6


@dataclass(frozen=True)
class Slerp:
    """The rule for the base and the other model."""

    t: float

    def request(self, learned: Sequence[SurveyResult]) -> Gram | None:
        return None if learned else Gram(of_inputs=True)

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        (aa, ab), (_, bb) = expect(GramResult, learned[0]).gram
        lengths = [x if x > _LEAST_SLERP_LENGTH else 1.0 for x in (math.sqrt(aa), math.sqrt(bb))]
        cosine = as_cosine(ab / (lengths[0] * lengths[1]))
        if abs(cosine) > _NEARLY_PARALLEL:
            return _line(self.t)
        return combination(arc(self.t, math.acos(cosine)))


@dataclass(frozen=True)
class NuSlerp:
    """The rule for two task vectors or, without a base, for two models.

    Attributes:
        single: the vectors have one element each, and so are parallel, although rounded sums may say otherwise.
    """

    t: float
    has_base: bool
    single: bool

    def request(self, learned: Sequence[SurveyResult]) -> Gram | None:
        return None if learned else Gram(of_inputs=not self.has_base)

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        (aa, ab), (_, bb) = expect(GramResult, learned[0]).gram
        lengths = [max(math.sqrt(x), _LEAST_NUSLERP_LENGTH) for x in (aa, bb)]
        cosine = as_cosine(ab / (lengths[0] * lengths[1]))
        parallel = 1 - cosine * cosine <= (_LEAST_NUSLERP_SINE if cosine > 0 else ROUNDING) ** 2
        parallel |= self.single and min(lengths) > _LEAST_NUSLERP_LENGTH
        if not self.has_base:
            return _line(self.t) if parallel else combination(arc(self.t, math.acos(cosine)))
        shares = (1 - self.t, self.t) if parallel else arc(self.t, math.acos(cosine))
        return FuseParams(shares, elect="none", divisor=1.0)


def _line(t: float) -> FuseParams:
    return FuseParams((t,), elect="none", divisor=1.0)


def _slerp(values: Values, _spec: TensorSpec) -> Slerp:
    return Slerp(values["t"])


def _nuslerp(values: Values, spec: TensorSpec) -> Rule:
    first, second = values["weight"]
    total = first + second
    t = 0.5 if abs(total) < _LEAST_WEIGHT else second / total

    def vectors(numel: int) -> NuSlerp:
        return NuSlerp(t, spec.has_base, numel == 1)

    if values["nuslerp_flatten"]:
        return vectors(spec.numel)
    if values["nuslerp_row_wise"]:  # mergekit's row_wise works on columns
        return by_column(vectors(spec.rows), spec)
    return ByRow(vectors(spec.row), spec.row)


SLERP = method(
    "slerp",
    "https://en.wikipedia.org/wiki/Slerp",
    _slerp,
    Parameter("t", "float", None, required=True),
    most=1,
)

NUSLERP = method(
    "nuslerp",
    "https://github.com/arcee-ai/mergekit",
    _nuslerp,
    Parameter("weight", "float", None, per_model=True, required=True),
    Parameter("nuslerp_flatten", "bool", True),
    Parameter("nuslerp_row_wise", "bool", False),
    base="optional",
    least=2,
    most=2,
)
