"""Holds SIGINT and SIGTERM back while something must not be torn, but for its safe points."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_HELD = (signal.SIGINT, signal.SIGTERM)


class _Hold:
    """Stands in for the program's handlers, and remembers the signals that came."""

    def __init__(self) -> None:
        self._caught: list[int] = []
        self._before = {number: signal.getsignal(number) for number in _HELD}
        self._over = False

    def install(self) -> None:
        for number in _HELD:
            signal.signal(number, self._hold)

    def restore(self) -> None:
        for number, handler in self._before.items():
            # None: a handler that Python cannot restore; the default replaces it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def deliver(self) -> None:
        """Hand the signals that came to the program's handlers. Once one of these raises, the rest are ignored."""
        while self._caught and not self._over:
            number = self._caught.pop(0)
            self._over = True
            self.restore()
            try:
                signal.raise_signal(number)
            finally:
                self.install()
            self._over = False

    def _hold(self, number: int, _frame: FrameType | None) -> None:
        if not self._over:
            self._caught.append(number)


_hold: _Hold | None = None


@contextmanager
def held_signals() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back: the program's handlers get them at a `safe_point`, or at the end.

    Within another hold, and in other threads than the main one, which no signal reaches, this is a no-op.
    """
    global _hold
    if _hold is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    hold = _Hold()
    try:
        hold.install()
        _hold = hold
        yield
    finally:
        _hold = None
        try:
            hold.deliver()
        finally:
            hold.restore()


def safe_point() -> None:
    """Let signals through that are held back: what the program's handlers raise (KeyboardInterrupt) comes out."""
    if _hold is not None and threading.current_thread() is threading.main_thread():
        _hold.deliver()
