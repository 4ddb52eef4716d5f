"""The machine and the software that figures were measured on."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from ..backends.registry import load_backend
from ..errors import BackendError
from ..system import resolve_threads
from ..version import __version__

_TREE = Path(__file__).resolve().parents[2]


def describe() -> dict[str, Any]:
    """Return the machine, the software and the date; the load is that before anything was measured."""
    return {
        "date": utc_now(),
        "version": __version__,
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": resolve_threads(None),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
        "isa": isa(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def utc_now() -> str:
    """Return the date and time."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def cpu_model() -> str:
    """Return the processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def isa() -> str | None:
    """Return the instruction set of the CPU's kernels; None: they are not built."""
    try:
        load_backend("cpu")  # which takes FUSEO1_ISA
    except BackendError:
        return None
    from ..backends import _cpu

    return _cpu.isa()


def commit() -> str | None:
    """Return the commit of the source tree that this is; None: it is none, or there is no git."""
    if not (_TREE / ".git").exists():
        return None
    git = ["git", "-C", str(_TREE), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
