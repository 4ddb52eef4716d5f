"""Fixtures of the plan's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.headers import Models


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path)
