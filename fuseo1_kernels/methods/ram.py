"""RAM and RAM+: the mean where task vectors overlap, and what one model alone changed in full (arXiv 2601.13572).

    z_i = d_i where |d_i| > epsilon, else 0;  n: how many z_i are not 0 in an element
    out = b + (sum of z_i) / n              where n is 2 or more
    out = b + lambda_i * z_i                where target i alone has one

RAM: lambda_i = 1. RAM+: lambda_i = 1 + r * min(shared_i / own_i, alpha), where target i has shared_i elements together
with others and own_i alone. This is done tensor by tensor, as in mergekit 0.1.5's ramplus_tl; the paper counts the
elements of the whole model.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ..backends.contract import Band, Cut, FuseParams, Overlaps, Select
from ..backends.results import OverlapsResult, SurveyResult, expect
from .method import Parameter, Values, method
from .rule import TensorSpec

_REFERENCE = "https://arxiv.org/abs/2601.13572"


@dataclass(frozen=True)
class Ram:
    """The rule, for `targets` targets. `raise_by` 0: RAM, which needs no survey."""

    targets: int
    epsilon: float
    raise_by: float = 0.0
    most: float = 0.0

    def request(self, learned: Sequence[SurveyResult]) -> Overlaps | None:
        return Overlaps(self._selects) if self.raise_by and not learned else None

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        alone = None
        if learned:
            counts = expect(OverlapsResult, learned[0]).overlaps
            alone = tuple(1.0 + self.raise_by * self._ratio(*pair) for pair in counts)
        equal = (1.0,) * self.targets
        return FuseParams(equal, elect="none", alone=alone, selects=self._selects)

    @property
    def _selects(self) -> tuple[Select, ...]:
        return (Band(_above(self.epsilon)),) * self.targets

    def _ratio(self, shared: int, own: int) -> float:
        """shared / own, at most `most`. A target without elements of its own has none to raise."""
        return min(shared / own, self.most) if own else 0.0


def _above(least: float) -> Cut:
    """The cut of the fp32 numbers above `least`, at least 0: those above the largest fp32 that is not above it."""
    bits, number = struct.unpack("<If", struct.pack("<f", least) * 2)
    return Cut(bits - (number > least), -1)


def _ram(values: Values, spec: TensorSpec) -> Ram:
    return Ram(len(spec.models), values["epsilon"])


def _ramplus(values: Values, spec: TensorSpec) -> Ram:
    return Ram(len(spec.models), values["epsilon"], values["r"], values["alpha"])


_EPSILON = Parameter("epsilon", "float", 1e-5, low=0.0)

RAM = method("ram", _REFERENCE, _ram, _EPSILON)
RAMPLUS_TL = method(
    "ramplus_tl",
    _REFERENCE,
    _ramplus,
    Parameter("r", "float", 0.1),
    Parameter("alpha", "float", 0.2, low=0.0),
    _EPSILON,
)
