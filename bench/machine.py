"""What the figures were measured on, and how fast its memory copies: the yardstick of every rate."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fuseo1_kernels.backends.arrays import advise_huge_pages
from fuseo1_kernels.system import resolve_threads

_REPOSITORY = Path(__file__).resolve().parent.parent
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


class Memcpy:
    """Copies `tensors` on `threads` threads to buffers of their sizes, over and over.

    The sources are the very tensors that are merged: on a virtual machine the speed of memory depends on
    which pages one got (36 and 60 GB/s were measured on two buffers in turn), so only a copy of the same
    pages is a fair yardstick. A copy moves twice their bytes: what it reads and what it writes.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], threads: int | None = None) -> None:
        self._pairs = [(torch.empty_like(t), t) for t in tensors]
        for target, _ in self._pairs:
            advise_huge_pages(target.data_ptr(), target.nbytes)  # as for a merge's new output
            target.zero_()
        self._threads = resolve_threads(threads)
        self.moved = 2 * sum(t.nbytes for t in tensors)

    def seconds(self, repeats: int) -> list[float]:
        """Return the time of each of `repeats` copies, after one that is not counted."""
        from fuseo1_kernels.backends import (
            _cpu,  # not above: bench/gpu.sh reports a build that failed, too
        )

        taken = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            for target, source in self._pairs:
                _cpu.parallel_memcpy(
                    target.data_ptr(), source.data_ptr(), source.nbytes, self._threads
                )
            taken.append(time.perf_counter() - start)
        return taken[1:]


def describe() -> dict[str, Any]:
    """Return the machine, the software and this process's command line."""
    from fuseo1_kernels.backends import _cpu

    return {
        "date": utc_now(),
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": resolve_threads(None),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "isa": _cpu.isa(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": versions(),
    }


def utc_now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def describe_line(machine: dict[str, Any]) -> str:
    """Return what `describe` found as a sentence or two."""
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    return (
        f"{machine['cpu']} ({machine['cores']} cores, {machine['isa']}), "
        f"{machine['memory_gib']} GiB, {machine['kernel']}; Python {machine['python']}, {packages}; "
        f"commit {machine['commit']}, {machine['date']}, load before it {machine['load']}. "
        f"`{machine['command']}`"
    )


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit, or where there is no git but somebody who knows it, FUSEO1_COMMIT."""
    git = ["git", "-C", str(_REPOSITORY), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("FUSEO1_COMMIT", "unknown")


def versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
