"""Model Stock: a step from the base towards the mean of the others, by the angles between them (arXiv 2403.19522).

    out = b + t * mean of d_i,  t = N cos / (1 + (N - 1) cos),  cos: the mean over all pairs of task vectors

With filter_wise every row has its own t. At a pole of t, where opposing task vectors cancel, nothing is added.
Products of lengths are at least 1e-6, as in mergekit 0.1.5. A denominator of t counts as 0 below 1e-6 (N - 1), because
it has cos's rounding N - 1 times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from ..backends.contract import FuseParams, Gram
from ..backends.results import GramResult, SurveyResult, expect
from .method import Parameter, Values, method
from .rule import ByRow, Rule, TensorSpec
from .sphere import as_cosine

_LEAST = 1e-6


@dataclass(frozen=True)
class ModelStock:
    """The rule for `targets` targets."""

    targets: int

    def request(self, learned: Sequence[SurveyResult]) -> Gram | None:
        return None if learned else Gram()

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        gram = expect(GramResult, learned[0]).gram
        cosines = []
        for i, j in combinations(range(self.targets), 2):
            lengths = math.sqrt(gram[i][i]) * math.sqrt(gram[j][j])
            cosines.append(as_cosine(gram[i][j] / max(lengths, _LEAST)))
        cosine = math.fsum(cosines) / len(cosines)
        others = self.targets - 1
        pole = 1 + others * cosine
        t = 0.0 if abs(pole) < _LEAST * others else self.targets * cosine / pole
        return FuseParams((1.0,) * self.targets, elect="none", divisor=float(self.targets), scale=t)


def _rule(values: Values, spec: TensorSpec) -> Rule:
    whole = ModelStock(len(spec.models))
    return ByRow(whole, spec.row) if values["filter_wise"] else whole


MODEL_STOCK = method(
    "model_stock",
    "https://arxiv.org/abs/2403.19522",
    _rule,
    Parameter("filter_wise", "bool", False),
    least=2,
)
