"""Surveys of tensors that stay in memory, for programs that merge the same models over and over."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from ..backends.contract import Request
from ..backends.results import SurveyResult


class ResidentSurveys:
    """Surveys by tensors and what was asked, in memory.

        surveys = ResidentSurveys()
        for candidate in population:
            merge_state_dicts(models, "sce", base=0, parameters=candidate, surveys=surveys)

    A survey depends on the inputs and on what is asked (select_topk, densities): calls that differ in variant,
    weights or output dtype, or return to a value of select_topk, need none. Tensors are told apart by the
    memory they lie in and by torch's count of changes in place; what changes them behind torch's back (numpy,
    `.data`) must be followed by `clear`. The tensors are kept alive until then.
    """

    def __init__(self) -> None:
        self._surveys: dict[Hashable, SurveyResult] = {}
        self._alive: dict[Hashable, tuple[torch.Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self._surveys)

    def clear(self) -> None:
        """Forget all surveys, and let go of the tensors."""
        self._surveys.clear()
        self._alive.clear()

    def find(self, tensors: Sequence[torch.Tensor], request: Request) -> SurveyResult | None:
        """Return what a survey of `tensors` (the base first), as they are now, said."""
        return self._surveys.get(_key(tensors, request))

    def keep(self, tensors: Sequence[torch.Tensor], request: Request, survey: SurveyResult) -> None:
        """Keep what a survey of `tensors` said."""
        key = _key(tensors, request)
        if key is not None:
            self._surveys[key] = survey.lasting
            self._alive[key] = tuple(tensors)


def _key(tensors: Sequence[torch.Tensor], request: Request) -> Hashable:
    """What tells these tensors from others; None if nothing does (inference mode counts no changes)."""
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return request, *(
        (t.data_ptr(), t._version, t.dtype, tuple(t.shape), t.stride()) for t in tensors
    )
