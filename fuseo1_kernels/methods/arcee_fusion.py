"""Arcee Fusion: takes the most important elements of one model, and the base's others (https://arcee.ai).

importance = |d| * divergence of the element's row (csrc/include/fuseo1/survey.h), in fp32
threshold = median + 1.5 * (third quartile - first quartile) of the importances
out = b + d where the importance is at least that, else b

A quartile is an element: of n in ascending order, from 0, the one of index (n - 1) * share, rounded down. mergekit
0.1.5 takes it of a random million elements of larger tensors, we of all.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from ..backends.contract import (
    NONE,
    Band,
    Cut,
    Divergences,
    FuseParams,
    Magnitudes,
    Request,
    RowFactors,
)
from ..backends.results import DivergencesResult, MagnitudesResult, SurveyResult, expect
from .method import Values, method
from .rule import TensorSpec

_LARGEST = float.fromhex("0x1.fffffep127")
# A tie limit that selects every tie.
_EVERY_TIE = 2**63 - 1


@dataclass(frozen=True)
class ArceeFusion:
    """The rule, for tensors of `numel` elements in rows of `row`."""

    numel: int
    row: int

    def request(self, learned: Sequence[SurveyResult]) -> Request | None:
        if not learned and self.numel:
            return Divergences(self.row, cuts=3)
        if len(learned) == 1:
            n = self.numel
            # n - i elements are at least as large as the one of ascending index i.
            ranks = tuple(n - (n - 1) * quarters // 4 for quarters in (1, 2, 3))
            return Magnitudes((ranks,), self._rows(learned))
        return None

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        selects: tuple[Band, ...] = ()
        if learned:
            [cuts] = expect(MagnitudesResult, learned[1]).cuts
            q1, median, q3 = (_number(cut.threshold) for cut in cuts)
            selects = (Band(_reaching(median + 1.5 * (q3 - q1)), rows=self._rows(learned)),)
        return FuseParams((1.0,), elect="none", divisor=1.0, selects=selects)

    def _rows(self, learned: Sequence[SurveyResult]) -> RowFactors:
        return RowFactors(self.row, expect(DivergencesResult, learned[0]).divergences)


def _number(bits: int) -> float:
    """The fp32 number of these bits."""
    number: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return number


def _reaching(least: float) -> Cut:
    """The cut of the elements of importance `least` or more: at the least fp32 that is not below it."""
    if least > _LARGEST:
        return NONE
    (bits,) = struct.unpack("<I", struct.pack("<f", least))
    return Cut(bits + (_number(bits) < least), _EVERY_TIE)


def _rule(_values: Values, spec: TensorSpec) -> ArceeFusion:
    return ArceeFusion(spec.numel, spec.row)


ARCEE_FUSION = method("arcee_fusion", "https://arcee.ai", _rule, most=1)
