"""One version of each tool: the one in constraints.txt."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PINS = {
    canonicalize_name(pin.name): str(pin.specifier)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
    for pin in [Requirement(line)]
}


def extra(name: str) -> list[Requirement]:
    """The requirements of an extra, as the Makefile installs them."""
    command: list[str | Path] = [sys.executable, ROOT / ".ci/extra.py", name]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [Requirement(line) for line in printed.splitlines()]


def test_every_constraint_is_a_version() -> None:
    assert all(re.fullmatch(r"==[\w.]+", specifier) for specifier in PINS.values())


def test_pre_commit_runs_the_same_versions() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    needs = [Requirement(n) for hook in hooks for n in hook.get("additional_dependencies", [])]
    assert {need.name for need in needs} == {"ruff", "clang-format"}
    for need in needs:
        assert str(need.specifier) == PINS[canonicalize_name(need.name)]


@pytest.mark.parametrize("name", ["bench", "lint", "test", "wheel"])
def test_the_makefiles_extras_are_pinned(name: str) -> None:
    needs = extra(name)
    assert needs
    assert [n.name for n in needs if canonicalize_name(n.name) not in PINS] == []
