"""The answers of surveys, one type for each kind of request; csrc/include/fuseo1/survey.h defines every field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict, TypeVar

from .contract import Cut, Kept


@dataclass(frozen=True, kw_only=True)
class SurveyResult:
    """The fields that every survey answers.

    Attributes:
        passes: reads of the whole tensor; more than 1 for a request of one read: the exact path was needed.
        nonfinite: counts of non-finite elements: of the base, of each target, and of overflows of finite inputs.
    """

    passes: int
    nonfinite: tuple[int, ...]

    @property
    def lasting(self) -> SurveyResult:
        """The result without references to memory, to be kept."""
        return self


class Counts(TypedDict):
    """The fields of SurveyResult, as keyword arguments of its subclasses."""

    passes: int
    nonfinite: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SceResult(SurveyResult):
    """The answer to a select_topk (SCE).

    Attributes:
        nonzero: elements whose score is not 0; -1 where no score is needed (select_topk 0 or 1).
        selected: k, the number of selected elements.
        threshold: fp32 bits of the lowest selected score.
        tie_limit: flat index of the last element selected at exactly that score.
        energy: by target, the sum of squares of its task vector over the selected elements.
    """

    nonzero: int
    selected: int
    threshold: int
    tie_limit: int
    energy: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class MagnitudesResult(SurveyResult):
    """The answer to Magnitudes.

    Attributes:
        cuts: by target, one cut for each rank.
    """

    cuts: tuple[tuple[Cut, ...], ...]


@dataclass(frozen=True, kw_only=True)
class NormsResult(SurveyResult):
    """The answer to Norms.

    Attributes:
        norms: by target, the sums of |d| over all elements and over the selected ones.
        kept: by target, its drawn mask, where there was memory for it; or empty.
    """

    norms: tuple[tuple[float, float], ...]
    kept: tuple[Kept | None, ...] = field(default=(), compare=False)

    @property
    def lasting(self) -> NormsResult:
        return replace(self, kept=())


@dataclass(frozen=True, kw_only=True)
class OverlapsResult(SurveyResult):
    """The answer to Overlaps.

    Attributes:
        overlaps: by target, how many elements it has together with others, and how many alone.
    """

    overlaps: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class GramResult(SurveyResult):
    """The answer to Gram.

    Attributes:
        gram: the matrix of inner products, row by row.
    """

    gram: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class DivergencesResult(SurveyResult):
    """The answer to Divergences.

    Attributes:
        divergences: fp32 numbers in the machine's byte order, one per row, as in RowFactors.
    """

    divergences: bytes


_Result = TypeVar("_Result", bound=SurveyResult)


def expect(kind: type[_Result], result: SurveyResult) -> _Result:
    """Return `result`, which answers a request of `kind`'s. TypeError if it is another answer."""
    if not isinstance(result, kind):
        raise TypeError(f"{kind.__name__} expected, not {type(result).__name__}")
    return result


def energy_of(learned: Sequence[SurveyResult]) -> tuple[float, ...]:
    """The energies of the surveys' one SceResult, by target; empty if there is none."""
    return next((result.energy for result in learned if isinstance(result, SceResult)), ())
