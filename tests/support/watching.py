"""Tells a test of the calls that the code under test makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def watch(patch: pytest.MonkeyPatch, owner: Any, name: str, note: Callable[..., object]) -> None:
    """Give `note` the positional arguments of every call of `owner`'s `name`, before it is made."""
    whole = getattr(owner, name)

    def noted(*arguments: Any, **options: Any) -> Any:
        note(*arguments)
        return whole(*arguments, **options)

    patch.setattr(owner, name, noted)
