"""Karcher mean: the point of the sphere that minimizes the squared distances to the models' directions, by iteration.

    step = mean over the models of  (u - cos(a) m) a / sin(a),  a: the angle from m to the model's direction u
    m'   = cos(|step|) m + sin(|step|) step / |step|

The result's length is the mean of the models' lengths. Models shorter than `tol` have no direction. A model opposed to
m has none as seen from m: u - cos(a) m is then 0 except for rounding, which 1 / sin(a) would blow up. So a vector
whose parts cancel, all but a small share of their lengths, counts as 0: such a model takes no part in the step, and if
the mean from which the steps start is 0, they start from the first model. mergekit 0.1.5 does so for exact zeros only.
Source: arXiv 2603.04972.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..backends.contract import FuseParams, Gram
from ..backends.results import GramResult, SurveyResult, expect
from .method import Parameter, Values, method
from .rule import TensorSpec, combination
from .sphere import (
    ROUNDING,
    GramMatrix,
    as_cosine,
    axis,
    inner,
    norm,
    plus,
    times,
    uncancelled,
    weighted,
)


@dataclass(frozen=True)
class Karcher:
    """The rule for `models` models, none of which is special.

    Attributes:
        least_left: a vector counts as 0 if its length is no more than this share of its parts' lengths.
    """

    models: int
    least_left: float
    max_iter: int
    tol: float

    def request(self, learned: Sequence[SurveyResult]) -> Gram | None:
        return None if learned or self.models == 1 else Gram(of_inputs=True)

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        return combination(self._factors(expect(GramResult, learned[0]).gram) if learned else [1.0])

    def _factors(self, gram: GramMatrix) -> list[float]:
        n = self.models
        lengths = [math.sqrt(gram[i][i]) for i in range(n)]
        units = [times(1 / lengths[i], axis(i, n)) for i in range(n) if lengths[i] > self.tol]
        if not units:
            return [0.0] * n
        share = 1 / len(units)
        mean = weighted([share] * len(units), units)
        length = norm(mean, gram)
        least = max(self.tol, self.least_left * uncancelled(mean, gram))
        mean = units[0] if length <= least else times(1 / length, mean)
        for _ in range(self.max_iter):
            step = [0.0] * n
            for unit in units:
                cosine = as_cosine(inner(mean, unit, gram))
                angle = math.acos(cosine)
                sine = math.sin(angle)
                away = plus(unit, times(-cosine, mean))
                opposed = cosine < 0 and sine <= self.least_left * uncancelled(away, gram)
                if angle > self.tol and not opposed:
                    step = plus(step, times(share * angle / sine, away))
            length = norm(step, gram)
            if length <= self.tol:
                break
            mean = plus(times(math.cos(length), mean), times(math.sin(length) / length, step))
            length = norm(mean, gram)
            if length > self.tol:
                mean = times(1 / length, mean)
        return times(math.fsum(lengths) / n, mean)


def _rule(values: Values, spec: TensorSpec) -> Karcher:
    # For a share of 1/16 a length is known to 2^-24 / (1/16)^2 = 2e-5; over many elements roundings average out.
    least_left = max(ROUNDING, 2.0**-4 / max(spec.numel, 1) ** 0.25)
    return Karcher(len(spec.models), least_left, values["max_iter"], values["tol"])


KARCHER = method(
    "karcher",
    "https://arxiv.org/abs/2603.04972",
    _rule,
    Parameter("max_iter", "int", 10, low=0),
    Parameter("tol", "float", 1e-5, low=0.0),
    base="ignored",
)
