"""The one place that decides on NaN and infinite elements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from ..backends.contract import Norms
from ..backends.results import SurveyResult
from ..errors import MergeError

#: The effect of NaN and infinite elements on a merge.
NONFINITE = ("error", "propagate")


def check_nonfinite(mode: str) -> None:
    """Raise MergeError unless `mode` is one of NONFINITE."""
    if mode not in NONFINITE:
        raise MergeError(f"nonfinite: must be {' or '.join(NONFINITE)}, not {mode!r}")


class NonfiniteGuard(ABC):
    """Refuses one merge's non-finite elements if `mode` is "error"; lets them pass if it is "propagate".

    Subclasses word the errors: they know what the inputs and the output are called.
    """

    def __init__(self, mode: str) -> None:
        self.refuses = mode == "error"

    def check_survey(self, survey: SurveyResult) -> None:
        """Raise MergeError if the survey counted non-finite elements."""
        if self.refuses:
            self.refuse_inputs(survey.nonfinite)

    def check_output(
        self,
        written: int,
        learned: Sequence[SurveyResult],
        survey: Callable[[], SurveyResult],
    ) -> None:
        """Raise MergeError if `written` elements, infinite or NaN, were merged.

        `survey` counts the inputs' non-finite elements. It is called if nothing was surveyed before: otherwise the
        inputs are known to be finite.
        """
        if not written or not self.refuses:
            return
        if not learned:
            self.check_survey(survey())
        self.refuse_overflow(written)

    @abstractmethod
    def refuse_inputs(self, counts: Sequence[int]) -> None:
        """Raise MergeError, naming the model, if a count is not 0.

        `counts` are those of SurveyResult.nonfinite: the base's, each target's, and overflows.
        """

    @abstractmethod
    def refuse_overflow(self, written: int) -> None:
        """Raise MergeError: so many merged elements overflow the output's dtype."""


def count_request(inputs: int) -> Norms:
    """The request of a survey that counts non-finite elements of so many inputs, the base among them."""
    return Norms((None,) * (inputs - 1))
