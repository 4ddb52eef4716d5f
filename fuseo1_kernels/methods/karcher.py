"""Karcher mean: the point of the sphere from which the models' directions are least far, found step by step.

Its length is the mean of theirs. Models shorter than `tol` have no direction. Source: arXiv 2603.04972.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..backends import FuseParams, SurveyResult
from ..backends.requests import Gram
from .record import Parameter, Target, Values, combination, method
from .sphere import GramMatrix, as_cosine, axis, inner, norm, plus, times, weighted


@dataclass(frozen=True)
class Karcher:
    """The rule, for `models` of them, all alike."""

    models: int
    max_iter: int
    tol: float

    def request(self, learned: Sequence[SurveyResult]) -> Gram | None:
        return None if learned or self.models == 1 else Gram(of_inputs=True)

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        return combination(self._factors(learned[0].gram) if learned else [1.0])

    def _factors(self, gram: GramMatrix) -> list[float]:
        n = self.models
        lengths = [math.sqrt(gram[i][i]) for i in range(n)]
        units = [times(1 / lengths[i], axis(i, n)) for i in range(n) if lengths[i] > self.tol]
        if not units:
            return [0.0] * n
        share = 1 / len(units)
        mean = weighted([share] * len(units), units)
        length = norm(mean, gram)
        mean = units[0] if length <= self.tol else times(1 / length, mean)
        for _ in range(self.max_iter):
            step = [0.0] * n
            for unit in units:
                cosine = as_cosine(inner(mean, unit, gram))
                angle = math.acos(cosine)
                if angle > self.tol:
                    away = plus(unit, times(-cosine, mean))
                    step = plus(step, times(share * angle / math.sin(angle), away))
            length = norm(step, gram)
            if length <= self.tol:
                break
            mean = plus(times(math.cos(length), mean), times(math.sin(length) / length, step))
            length = norm(mean, gram)
            if length > self.tol:
                mean = times(1 / length, mean)
        return times(math.fsum(lengths) / n, mean)


def _rule(values: Values, target: Target) -> Karcher:
    return Karcher(len(target.models), values["max_iter"], values["tol"])


KARCHER = method(
    "karcher",
    "https://arxiv.org/abs/2603.04972",
    _rule,
    Parameter("max_iter", "int", 10, low=0),
    Parameter("tol", "float", 1e-5, low=0.0),
    base="ignored",
)
