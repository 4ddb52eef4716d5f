"""What a backend that merges by SCE alone says to the rest of the contract."""

from __future__ import annotations

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


def refuse_rows(backend: str, asked: Request | Select) -> None:
    """Raises BackendError if `asked` is of divergences of rows, or of |d| multiplied by rows' factors."""
    with_factors = isinstance(asked, Band | Magnitudes) and asked.rows is not None
    if with_factors or isinstance(asked, Divergences):
        raise BackendError(
            f"backend {backend} has no {type(asked).__name__} by rows: use the CPU for this merge"
        )


def _refusal(backend: str, why: str) -> BackendError:
    return BackendError(
        f"backend {backend} merges by sce alone in this version; {why}: use the CPU for this merge"
    )
