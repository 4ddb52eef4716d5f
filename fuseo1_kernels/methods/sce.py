"""SCE: select by variance, weigh by energy, erase minority signs (arXiv 2408.07990)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..backends.contract import FuseParams
from ..backends.results import SceResult, SurveyResult, expect
from .method import Parameter, Values, method
from .rule import TensorSpec

VARIANTS = ("fuseo1", "mergekit")

# mergekit's rules, which its variant reproduces: below this mean square all weights are equal, and no divisor is
# smaller.
_MERGEKIT_FLOOR = 1e-6


@dataclass(frozen=True)
class Sce:
    """The rule: one survey that selects the share `select_topk` of the elements."""

    select_topk: float
    variant: str
    numel: int

    def request(self, learned: Sequence[SurveyResult]) -> float | None:
        return None if learned else self.select_topk

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        return sce_params(expect(SceResult, learned[0]), self.numel, self.select_topk, self.variant)


def sce_params(survey: SceResult, numel: int, select_topk: float, variant: str) -> FuseParams:
    """Weights, divisor and mask of SCE (arXiv 2408.07990) from a tensor's survey.

    `fuseo1` is the authors' rule, which made the published models: the mask selects the elements that count
    for the weights, and every element is merged. In `mergekit` (0.1.5) elements that are not selected stay
    the base's, weights are equal when the mean squares sum to less than 1e-6, and divisors are at least 1e-6.
    Equal weights are 1 each: only their ratios matter, and 1/3 would break exact rounding ties.
    """
    total = 0.0
    for e in survey.energy:
        total += e
    equal = total == 0.0
    if variant == "mergekit" and numel:
        equal = total / numel < _MERGEKIT_FLOOR
    weights = tuple(1.0 if equal else e / total for e in survey.energy)
    if variant == "fuseo1":
        return FuseParams(weights)
    return FuseParams(
        weights,
        floor_divisor=_MERGEKIT_FLOOR,
        masked=select_topk < 1.0,
        threshold=survey.threshold,
        tie_limit=survey.tie_limit,
    )


def _rule(values: Values, spec: TensorSpec) -> Sce:
    return Sce(values["select_topk"], values["variant"], spec.numel)


SCE = method(
    "sce",
    "https://arxiv.org/abs/2408.07990",
    _rule,
    Parameter("select_topk", "float", 1.0, low=0.0, high=1.0),
    Parameter("variant", "choice", "fuseo1", choices=VARIANTS),
    # mergekit stores its masks as int8 on request; here there are no masks to store.
    Parameter("int8_mask", "bool", False),
    base_alone=True,
)
