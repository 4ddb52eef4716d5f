"""Multi-SLERP: a weighted mean of several models, or task vectors, on the sphere, by one step in a tangent space.

Source: https://goddard.blog/posts/multislerp-wow-what-a-cool-idea; `eps` is added to lengths
as in mergekit 0.1.5. Directions that cancel up to the rounding of their inner products have no mean (sphere.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..backends.contract import FuseParams, Gram
from ..backends.results import GramResult, SurveyResult, expect
from ..errors import ConfigError, MergeError
from .method import Parameter, Values, method
from .rule import LEAST_TOTAL, TensorSpec, combination, of
from .sphere import (
    ROUNDING,
    GramMatrix,
    axis,
    inner,
    norm,
    plus,
    times,
    uncancelled,
    weighted,
)


@dataclass(frozen=True)
class MultiSlerp:
    """The rule for task vectors or, without a base, for models."""

    weights: tuple[float, ...]
    eps: float
    has_base: bool
    tensor: str

    def request(self, learned: Sequence[SurveyResult]) -> Gram | None:
        single = len(self.weights) == 1
        return None if learned or single else Gram(of_inputs=not self.has_base)

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        factors = self._factors(expect(GramResult, learned[0]).gram) if learned else [1.0]
        if self.has_base:
            return FuseParams(tuple(factors), elect="none", divisor=1.0)
        return combination(factors)

    def _factors(self, gram: GramMatrix) -> list[float]:
        n = len(self.weights)
        lengths = [math.sqrt(gram[i][i]) for i in range(n)]
        units = [times(_inverse(lengths[i] + self.eps), axis(i, n)) for i in range(n)]
        mean = weighted(self.weights, units)
        length = norm(mean, gram)
        if length <= max(self.eps, ROUNDING * uncancelled(mean, gram)):
            # Two models: as in mergekit. If all vectors are 0, because no fine-tune changed them, any weights will do.
            if n == 2 or not any(lengths):
                return list(self.weights)
            raise MergeError(
                f"multislerp has no mean{of(self.tensor)}: the models, so weighted, cancel out; change the weights"
                " (or eps, if that is larger than 1e-6)"
            )
        mean = times(1 / length, mean)
        tangents = [plus(u, times(-inner(u, mean, gram), mean)) for u in units]
        step = weighted(self.weights, tangents)
        angle = norm(step, gram) + self.eps
        point = plus(times(math.cos(angle), mean), times(math.sin(angle) * _inverse(angle), step))
        scale = math.fsum(w * length for w, length in zip(self.weights, lengths, strict=True))
        return times(scale, point)


def _inverse(length: float) -> float:
    """1 / length, or 0 for a vector without a direction, which eps 0 allows."""
    return 1 / length if length else 0.0


def _rule(values: Values, spec: TensorSpec) -> MultiSlerp:
    weights = values["weight"]
    if values["normalize_weights"]:
        total = math.fsum(weights)
        if abs(total) < LEAST_TOTAL:
            raise ConfigError(
                f"multislerp: the weights{of(spec.name)} sum to 0; change them, or set "
                "normalize_weights: false"
            )
        weights = tuple(w / total for w in weights)
    return MultiSlerp(weights, values["eps"], spec.has_base, spec.name)


MULTISLERP = method(
    "multislerp",
    "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    _rule,
    Parameter("weight", "float", None, per_model=True, required=True),
    Parameter("normalize_weights", "bool", True),
    Parameter("eps", "float", 1e-8, low=0.0),
    base="optional",
)
