"""How many threads to use."""

from __future__ import annotations

import os

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
