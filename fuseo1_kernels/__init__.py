"""Checkpoint merging at memory bandwidth, correct to the bit.

The public functions are loaded when they are first used: importing this package imports neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "FuseParams": "backends",
    "MergeError": "errors",
    "MergeResult": "engine",
    "ResidentSurveys": "resident",
    "SurveyResult": "backends",
    "VerifyResult": "verification",
    "fuse": "ops",
    "merge_checkpoints": "engine",
    "merge_state_dicts": "memory",
    "merge_tensors": "memory",
    "survey": "ops",
    "verify_model": "verification",
}

__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from .backends import FuseParams as FuseParams
    from .backends import SurveyResult as SurveyResult
    from .engine import MergeResult as MergeResult
    from .engine import merge_checkpoints as merge_checkpoints
    from .errors import MergeError as MergeError
    from .memory import merge_state_dicts as merge_state_dicts
    from .memory import merge_tensors as merge_tensors
    from .ops import fuse as fuse
    from .ops import survey as survey
    from .resident import ResidentSurveys as ResidentSurveys
    from .verification import VerifyResult as VerifyResult
    from .verification import verify_model as verify_model


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
