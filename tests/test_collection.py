"""pytest finds every file of tests."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest

from support.paths import TESTS


def test_no_folder_is_passed_over(pytestconfig: pytest.Config) -> None:
    """As pytest, left alone, does with those that are called build."""
    passed_over = pytestconfig.getini("norecursedirs")
    folders = {file.parent for file in TESTS.rglob("test_*.py")}
    assert TESTS / "build" in folders
    assert not [f for f in folders if any(fnmatch(f.name, pattern) for pattern in passed_over)]
