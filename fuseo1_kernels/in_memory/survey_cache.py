"""Keeps surveys in memory, for programs that merge the same tensors repeatedly."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from ..backends.contract import Request
from ..backends.results import SurveyResult


class ResidentSurveys:
    """Surveys in memory, by tensors and request.

        surveys = ResidentSurveys()
        for candidate in population:
            merge_state_dicts(models, "sce", base=0, parameters=candidate, surveys=surveys)

    A survey depends on the inputs and on the request (select_topk, densities). Calls that differ only in variant,
    weights or output dtype, or that repeat a value of select_topk, need no new survey. Tensors are identified by their
    memory and by torch's version counter. Call `clear` after changes that torch does not count (numpy, `.data`). The
    tensors are kept alive until then.
    """

    def __init__(self) -> None:
        self._surveys: dict[Hashable, SurveyResult] = {}
        self._alive: dict[Hashable, tuple[torch.Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self._surveys)

    def clear(self) -> None:
        """Drop all surveys and the references to their tensors."""
        self._surveys.clear()
        self._alive.clear()

    def find(self, tensors: Sequence[torch.Tensor], request: Request) -> SurveyResult | None:
        """Return the survey of `tensors`, base first, as they are now; None if there is none."""
        return self._surveys.get(_key(tensors, request))

    def keep(self, tensors: Sequence[torch.Tensor], request: Request, survey: SurveyResult) -> None:
        """Keep a survey of `tensors`, base first."""
        key = _key(tensors, request)
        if key is not None:
            self._surveys[key] = survey.lasting
            self._alive[key] = tuple(tensors)


def _key(tensors: Sequence[torch.Tensor], request: Request) -> Hashable:
    """Return the key of these tensors; None for inference tensors, whose changes torch does not count."""
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return request, *(
        (t.data_ptr(), t.is_neg(), t._version, t.dtype, tuple(t.shape), t.stride()) for t in tensors
    )
