"""Starts threads' work and waits for it, so that signals are answered and leave no lock locked."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from ..checkpoint.signals import safe_point
from ..errors import MergeError

# Seconds within which a signal is answered.
_SIGNALS_EVERY = 0.05

_Result = TypeVar("_Result")


def submit(
    threads: ThreadPoolExecutor, calls: Iterable[Callable[[], _Result]]
) -> list[Future[_Result]]:
    """Have the threads make these calls. Raises MergeError if the system does not grant the threads."""
    try:
        return [threads.submit(call) for call in calls]
    except RuntimeError as error:
        raise MergeError(f"{error}; lower --threads") from error


def wait(futures: Sequence[Future[_Result]]) -> list[Future[_Result]]:
    """Return the futures that have ended, in that order, once all have or one has failed. A safe point for signals.

    `concurrent.futures.wait` holds locks that a signal's exception may leave locked.
    """
    ends: queue.SimpleQueue[Future[_Result]] = queue.SimpleQueue()
    for future in futures:
        future.add_done_callback(ends.put)
    ended: list[Future[_Result]] = []
    while len(ended) < len(futures):
        safe_point()
        with suppress(queue.Empty):
            ended.append(ends.get(timeout=_SIGNALS_EVERY))
            if ended[-1].exception() is not None:
                break
    return ended
