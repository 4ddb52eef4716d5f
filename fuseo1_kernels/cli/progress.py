"""Shows how far a merge or a check is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

from tqdm import tqdm

from .terminal import say

_SECONDS_BETWEEN_LINES = 10.0


class TerminalProgress:
    """A bar with bytes, rate and time left."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def start(self, title: str, total_bytes: int) -> None:
        self._lock = threading.Lock()
        self._bar = tqdm(
            total=total_bytes,
            desc=title,
            unit="B",
            unit_scale=True,
            file=self._stream,
            dynamic_ncols=True,  # the terminal may be resized
        )

    def advance(self, nbytes: int) -> None:
        with self._lock:
            self._bar.update(nbytes)

    def close(self) -> None:
        self._bar.close()


class LineProgress:
    """A line at the start and then one every ten seconds, for logs."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def start(self, title: str, total_bytes: int) -> None:
        self._lock = threading.Lock()
        self._total, self._done = total_bytes, 0
        self._began = self._printed = time.monotonic()
        self._print(f"{title}, {total_bytes / 1e9:.2f} GB")

    def advance(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            now = time.monotonic()
            if now - self._printed < _SECONDS_BETWEEN_LINES or not self._done:
                return
            self._printed = now
            rate = self._done / (now - self._began)
            left = (self._total - self._done) / rate
            self._print(
                f"{self._done / self._total:4.0%} of {self._total / 1e9:.2f} GB, "
                f"{per_second(rate)}, {left:.0f} s left"
            )

    def close(self) -> None:
        """No-op: nothing is open."""

    def _print(self, line: str) -> None:
        say(line, stream=self._stream)


def per_second(rate: float) -> str:
    """Format a rate in bytes per second."""
    return f"{rate / 1e9:.2f} GB/s" if rate >= 1e7 else f"{rate / 1e6:.2f} MB/s"


def make_progress() -> TerminalProgress | LineProgress:
    """Return a bar if stderr is a terminal, else lines."""
    return TerminalProgress() if sys.stderr.isatty() else LineProgress()
