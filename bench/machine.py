"""What the figures were measured on, and how fast its memory copies: the yardstick of every rate."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fuseo1_kernels import _cpu
from fuseo1_kernels.threads import resolve_threads

_REPOSITORY = Path(__file__).resolve().parent.parent
_PACKAGES = ("torch", "mergekit", "transformers", "safetensors", "tokenizers", "numpy", "pydantic")


class Memcpy:
    """Copies `nbytes` on `threads` threads between two buffers, over and over.

    The buffers are torch's, as the merged tensors are, so both get the same kind of pages; they are
    written once before the first copy. A copy moves 2 * nbytes: what it reads and what it writes.
    """

    def __init__(self, nbytes: int, threads: int | None = None) -> None:
        self._source = torch.ones(nbytes, dtype=torch.uint8)
        self._target = torch.zeros(nbytes, dtype=torch.uint8)
        self._threads = threads or resolve_threads(None)
        self.moved = 2 * nbytes

    def seconds(self, repeats: int) -> list[float]:
        """Return the time of each of `repeats` copies, after one that is not counted."""
        taken = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            _cpu.parallel_memcpy(
                self._target.data_ptr(),
                self._source.data_ptr(),
                self._source.numel(),
                self._threads,
            )
            taken.append(time.perf_counter() - start)
        return taken[1:]


def describe() -> dict[str, Any]:
    """Return the machine, the software and this process's command line."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", *sys.argv]),
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": resolve_threads(None),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "isa": _cpu.isa(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": _versions(),
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


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _commit() -> str:
    git = ["git", "-C", str(_REPOSITORY), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
