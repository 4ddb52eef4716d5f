"""What GPU backends refuse: the launches that know SCE alone, and what no GPU has."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BackendError
from .requests import Band, Divergences, FuseParams, Magnitudes, Request, Select


def select_topk_of(backend: str, request: Request) -> float:
    """SCE's request, or BackendError."""
    if isinstance(request, int | float):
        return request
    raise _refusal(backend, f"it has no survey of {type(request).__name__}")


def check_is_sce(backend: str, params: FuseParams) -> None:
    """Raises BackendError unless `params` are SCE's."""
    if not params.is_sce:
        raise _refusal(backend, "its fuse knows weights, a floor and the mask by score")


def check_no_factors(backend: str, asked: Request | Sequence[Select]) -> None:
    """Raises BackendError for scores that are multiplied row by row, and for divergences, which only the CPU has."""
    if isinstance(asked, Magnitudes):
        refused = asked.rows is not None
    elif isinstance(asked, Sequence):
        refused = any(isinstance(select, Band) and select.rows is not None for select in asked)
    else:
        refused = isinstance(asked, Divergences)
    if refused:
        raise BackendError(
            f"backend {backend} has no divergences of rows: use the CPU for this merge (arcee_fusion)"
        )


def _refusal(backend: str, why: str) -> BackendError:
    return BackendError(
        f"backend {backend} merges by sce alone in this version; {why}: use the CPU for this merge"
    )
