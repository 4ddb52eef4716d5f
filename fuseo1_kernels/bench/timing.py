"""The clock, and the memcpy that every rate is held against.

Calls and copies take turns, because a machine's memory may be faster or slower from one second to the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch

from ..backends.arrays import advise_huge_pages
from ..backends.registry import load_backend
from ..errors import BackendError
from ..system import resolve_threads

Work = Callable[[], object]

#: What the samples of copies are called among those of calls.
MEMCPY = "memcpy"

_COPIES_A_TURN = 2


def timed(work: Work, device: str = "cpu") -> float:
    """Return the seconds that `work` takes; what it returns is freed after the clock stops.

    On "cuda" by events on the current stream, which count what the device waits for the host.
    """
    if device == "cuda":
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        begin.record()
        kept = work()
        end.record()
        end.synchronize()
        seconds = float(begin.elapsed_time(end)) / 1e3
    else:
        start = time.perf_counter()
        kept = work()
        seconds = time.perf_counter() - start
    del kept
    return seconds


class Memcpy:
    """Copies `tensors` on `threads` threads (default: all cores) to buffers of their sizes, over and over.

    The sources are the very tensors that are merged: on a virtual machine the speed of memory depends on which pages
    one got (36 and 60 GB/s were measured on two buffers in turn), so only a copy of the same pages is a fair measure.

    Attributes:
        nbytes: what a copy moves, twice the tensors' bytes: it reads them and writes them.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], threads: int | None = None) -> None:
        self._pairs = [(torch.empty_like(t), t) for t in tensors]
        self.device = tensors[0].device.type
        for target, _ in self._pairs:
            if self.device == "cpu":
                advise_huge_pages(target.data_ptr(), target.nbytes)  # as for a merge's new output
            target.zero_()
        self._threads = resolve_threads(threads)
        self._copy = self._native if self.device == "cpu" and _is_native() else self._by_torch
        self.nbytes = 2 * sum(t.nbytes for t in tensors)

    def seconds(self, repeats: int) -> list[float]:
        """Return the time of each of `repeats` copies, after one that is not counted."""
        return [timed(self._copy, self.device) for _ in range(repeats + 1)][1:]

    def _native(self) -> None:
        from ..backends import _cpu  # where the kernels are not built, torch copies

        for target, source in self._pairs:
            _cpu.parallel_memcpy(target.data_ptr(), source.data_ptr(), source.nbytes, self._threads)

    def _by_torch(self) -> None:
        for target, source in self._pairs:
            target.copy_(source)


def _is_native() -> bool:
    try:
        load_backend("cpu")
    except BackendError:
        return False
    return True


def take_turn(
    taken: dict[Hashable, list[float]],
    calls: Mapping[Hashable, Work],
    memcpy: Memcpy,
    repeats: int = 4,
) -> None:
    """Append to `taken` the seconds of `repeats` runs of every call, and before each those of copies, as MEMCPY.

    A call's first run is not counted.
    """
    for name, work in calls.items():
        taken.setdefault(MEMCPY, []).extend(memcpy.seconds(_COPIES_A_TURN))
        work()
        taken.setdefault(name, []).extend(timed(work, memcpy.device) for _ in range(repeats))
