"""Checkpoint merging at memory bandwidth, correct to the bit.

Public names are imported when first used: importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

# Public names, with the modules that define them.
_MODULES = {
    "FuseParams": "backends.contract",
    "MergeError": "errors",
    "MergeResult": "engine.result",
    "ResidentSurveys": "in_memory.survey_cache",
    "SurveyResult": "backends.results",
    "VerifyResult": "engine.verify",
    "fuse": "in_memory.ops",
    "merge_checkpoints": "engine.merge",
    "merge_state_dicts": "in_memory.merge",
    "merge_tensors": "in_memory.merge",
    "survey": "in_memory.ops",
    "verify_model": "engine.verify",
}

__all__ = ["__version__", *sorted(_MODULES)]

if TYPE_CHECKING:
    from .backends.contract import FuseParams as FuseParams
    from .backends.results import SurveyResult as SurveyResult
    from .engine.merge import merge_checkpoints as merge_checkpoints
    from .engine.result import MergeResult as MergeResult
    from .engine.verify import VerifyResult as VerifyResult
    from .engine.verify import verify_model as verify_model
    from .errors import MergeError as MergeError
    from .in_memory.merge import merge_state_dicts as merge_state_dicts
    from .in_memory.merge import merge_tensors as merge_tensors
    from .in_memory.ops import fuse as fuse
    from .in_memory.ops import survey as survey
    from .in_memory.survey_cache import ResidentSurveys as ResidentSurveys


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
