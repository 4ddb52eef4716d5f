"""The sizes by which merges in tests work: the engine's own, until a test or a sabotage asks for others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fuseo1_kernels.engine.tuning import DEFAULT_TUNING, Tuning

#: Every tensor is a unit of its own, and one of tens of thousands of elements is merged in chunks.
FINE: dict[str, Any] = {"batch": 1, "chunk": 1 << 14}

_current = DEFAULT_TUNING


def current() -> Tuning:
    """The sizes that `run`, `merge` and forked merges are to be given."""
    return _current


def change(**sizes: Any) -> None:
    """Change sizes for the rest of this process."""
    global _current
    _current = replace(_current, **sizes)


def tune(patch: pytest.MonkeyPatch, **sizes: Any) -> None:
    """Change sizes until `patch` is undone."""
    patch.setattr(f"{__name__}._current", replace(_current, **sizes))
