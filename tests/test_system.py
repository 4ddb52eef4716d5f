"""How much memory there is for the page cache: what the system has, or a container's limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuseo1_kernels import system
from fuseo1_kernels.system import free_memory


@pytest.fixture
def limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the container's limit; there is none at first."""
    monkeypatch.setattr(system, "_LIMITS", (tmp_path / "absent", tmp_path / "memory.max"))
    return tmp_path / "memory.max"


def test_what_the_system_has(limit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       100 kB\nMemAvailable:    70 kB\n")
    monkeypatch.setattr(system, "_MEMINFO", file)
    assert free_memory() == 70 << 10
    limit.write_text("max\n")
    assert free_memory() == 70 << 10
    limit.write_text("5000\n")
    assert free_memory() == 5000


def test_a_system_that_does_not_tell(
    limit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_MEMINFO", tmp_path / "none")
    assert free_memory() >= 1 << 28
