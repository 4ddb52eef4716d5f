"""In which order tensors are merged, and what the system is to read meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from .plan import Job

#: Bytes that the system reads in the background, of the tensors next in order. Measured with readahead
#: settings of 128 KiB and 8 MiB: 64 MiB bring a single reader to the speed of the disk (docs/storage.md).
READ_AHEAD = 64 << 20

# Below this many bytes of inputs it makes no difference how a tensor is read.
_LARGE = 1 << 20
# Smaller tensors are handed out together until they come to this many bytes of inputs.
_BATCH = 4 << 20


class Schedule:
    """Hands tensors to workers, in the order of the base's files, and has the next ones read ahead.

    Small tensors come in batches. Those too large to be held whole (`whole` says no) take longest: the
    largest comes first and the others stand evenly among the rest, so that the workers end together.
    """

    def __init__(
        self, jobs: Sequence[Job], whole: Callable[[Job], bool], workers: int, threads: int
    ) -> None:
        # Asked before anything is read: later the answer would be about what was read ahead.
        self._cached = {job.name for job in jobs if job.input_bytes >= _LARGE and _is_cached(job)}
        in_order = sorted(jobs, key=lambda j: (str(j.inputs[0].info.file), j.inputs[0].info.offset))
        streamed = [job for job in in_order if not whole(job)]
        streamed.sort(key=lambda job: -job.numel)
        self._units = _spread(streamed, _batches([job for job in in_order if whole(job)]))
        self._next = self._advised = self._ahead = 0
        self._working, self._threads = workers, threads
        self._lock = threading.Lock()

    def take(self) -> list[Job]:
        """Return the next tensors for a worker; none: there are no more, and the worker is done."""
        with self._lock:
            if self._next == len(self._units):
                self._working -= 1
                return []
            taken = self._units[self._next]
            if self._next < self._advised:
                self._ahead -= _read_ahead(taken)
            self._next += 1
            advise = []
            while self._advised < len(self._units) and (
                self._advised < self._next or self._ahead < READ_AHEAD
            ):
                unit = self._units[self._advised]
                advise.append(unit)
                self._ahead += _read_ahead(unit) if self._advised >= self._next else 0
                self._advised += 1
        for unit in advise:
            for job in unit:
                # The page of a small tensor is its neighbours' too.
                again = job.input_bytes < _BATCH
                will_need(job, 0, READ_AHEAD // job.element_bytes, again=again)
        return taken

    def is_cached(self, job: Job) -> bool:
        """Whether all inputs lay in the page cache at first, and are large enough for it to matter."""
        return job.name in self._cached

    def threads(self) -> int:
        """Threads for a kernel's call by one of the workers still at work."""
        return max(1, self._threads // max(1, self._working))


def _is_cached(job: Job) -> bool:
    return all(x.source.is_cached(x.info) for x in job.inputs)


def will_need(job: Job, start: int, count: int, *, again: bool = False) -> None:
    """Have the system read elements [start, start + count) of all inputs in the background.

    Those that are read past the page cache are not, unless their pages are read `again`.
    """
    count = min(count, job.numel - start)
    if count > 0:
        for x in job.inputs:
            size = x.dtype.size
            x.source.will_need(x.info, start * size, count * size, again=again)


def _read_ahead(unit: Sequence[Job]) -> int:
    return sum(min(job.input_bytes, READ_AHEAD) for job in unit)


def _spread(large: Sequence[Job], units: Sequence[list[Job]]) -> list[list[Job]]:
    """Put each of `large` before an equal share of the bytes in `units`."""
    total = sum(job.input_bytes for unit in units for job in unit)
    spread: list[list[Job]] = []
    done = placed = 0
    for unit in units:
        while placed < len(large) and done >= total * placed / len(large):
            spread.append([large[placed]])
            placed += 1
        spread.append(unit)
        done += sum(job.input_bytes for job in unit)
    return [*spread, *([job] for job in large[placed:])]


def _batches(jobs: Sequence[Job]) -> list[list[Job]]:
    batches: list[list[Job]] = []
    filled = _BATCH
    for job in jobs:
        if filled >= _BATCH:
            batches.append([])
            filled = 0
        batches[-1].append(job)
        filled += job.input_bytes
    return batches
