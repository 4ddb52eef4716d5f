"""The system's resources: threads and free memory."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import MergeError

# More threads per core gain nothing and cost memory.
_MOST_PER_CORE = 4
_MEMINFO = Path("/proc/meminfo")
# The memory limit of this process's container, in bytes: control groups version 2, version 1.
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def resolve_threads(threads: int | None) -> int:
    """Return the number of threads to use: `threads`, but at most 4 per core; None: one per core.

    Only cores that this process may run on are counted. Raises MergeError if `threads` is less than 1.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    if threads is None:
        return cores
    if threads < 1:
        raise MergeError(f"threads: must be 1 or more, not {threads}")
    return min(threads, _MOST_PER_CORE * cores)


def free_memory() -> int:
    """Return the bytes that the system can allocate without swapping, or the container's limit if that is less."""
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
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return limits
