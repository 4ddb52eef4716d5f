"""NearSwap: moves towards the other model where the two are near each other.

out = b + w d, w = min(1, t / |d|): the other model's element if it is within t of the base's, else a step of t towards
it. (mergekit 0.1.5 divides by at least 1e-6, so it differs where both |d| and t are smaller.)
Source: https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..backends.contract import Clamp, FuseParams
from ..backends.results import SurveyResult
from .method import Parameter, Values, method
from .rule import TensorSpec


@dataclass(frozen=True)
class NearSwap:
    """The rule: it needs no survey."""

    t: float

    def request(self, learned: Sequence[SurveyResult]) -> None:
        return None

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        return FuseParams((1.0,), elect="none", divisor=1.0, selects=(Clamp(self.t),))


def _rule(values: Values, _spec: TensorSpec) -> NearSwap:
    return NearSwap(values["t"])


NEARSWAP = method(
    "nearswap",
    "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    _rule,
    Parameter("t", "float", None, low=0.0, required=True),
    most=1,
)
