"""Holds signals back during steps that they must not interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_HELD = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_signals(*, redeliver: bool) -> Iterator[None]:
    """Hold SIGINT and SIGTERM back; afterwards redeliver the first one that came, or ignore them.

    Signals reach Python code only in the main thread: in others this is a no-op.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, hold) for number in _HELD}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: a handler that Python cannot restore; the default replaces it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if redeliver and caught:
        signal.raise_signal(caught[0])
