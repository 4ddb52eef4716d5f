"""How many threads to use."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import MergeError

# More than this many a core gain nothing and cost memory.
_MOST_PER_CORE = 4


def resolve_threads(threads: int | None) -> int:
    """`threads`, within reason; None: the cores that this process may run on."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    if threads is None:
        return cores
    if threads < 1:
        raise MergeError(f"threads: must be 1 or more, not {threads}")
    return min(threads, _MOST_PER_CORE * cores)


_MEMINFO = Path("/proc/meminfo")


# The limit of this process's container, where there is one: control groups version 2, version 1.
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def free_memory() -> int:
    """Bytes that the system can give without swapping, or the container's limit if that is less."""
    return min([_available(), *_limits()])


def _available() -> int:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limits() -> list[int]:
    limits = []
    for file in _LIMITS:
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):  # none, or "max"
            continue
    return limits
