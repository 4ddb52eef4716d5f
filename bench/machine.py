"""The machine that figures are measured on, and the packages that the benchmarks use."""

from __future__ import annotations

import os
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fuseo1_kernels.bench import machine

_PACKAGES = (
    "torch",
    "triton",
    "mergekit",
    "transformers",
    "safetensors",
    "tokenizers",
    "numpy",
    "pydantic",
)


def describe() -> dict[str, Any]:
    """Return the machine, the software and this process's command line."""
    return {
        **machine.describe(),
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
        "packages": versions(),
    }


def describe_line(machine: dict[str, Any]) -> str:
    """Return what `describe` found as a sentence or two."""
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    return (
        f"{machine['cpu']} ({machine['cores']} cores, {machine['isa']}), "
        f"{machine['memory_gib']} GiB, {machine['kernel']}; Python {machine['python']}, {packages}; "
        f"commit {machine['commit']}, {machine['date']}, load before it {machine['load']}. "
        f"`{machine['command']}`"
    )


def commit() -> str:
    """Return the commit, or where there is no git but somebody who knows it, FUSEO1_COMMIT."""
    return machine.commit() or os.environ.get("FUSEO1_COMMIT", "unknown")


def versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
