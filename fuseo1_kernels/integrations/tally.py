"""Counts the merges that the kernels did inside another tool, and those that they left to the tool, by reason."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import dataclass

from ..errors import MergeError

#: The reason for leaving a merge that changes no element; it is logged as information, not as a warning.
NOTHING_TO_COMPUTE = "nothing to compute"


@dataclass(frozen=True)
class Counts:
    """Numbers of merged tensors.

    Attributes:
        tool: the tool that merged the others.
        merged: by method, those that the kernels merged.
        left: by method and reason, those that the tool's own code merged.
    """

    tool: str
    merged: dict[str, int]
    left: dict[tuple[str, str], int]

    def __str__(self) -> str:
        by_method = ", ".join(f"{method} {n}" for method, n in sorted(self.merged.items()))
        text = f"the kernels merged {_tensors(self.merged)}" + (by_method and f" ({by_method})")
        if self.left:
            why = "; ".join(f"{method} {n}: {r}" for (method, r), n in sorted(self.left.items()))
            text += f", {self.tool}'s own code {_tensors(self.left)} ({why})"
        return text


class Tally:
    """Counts merges; thread-safe. Logs the first merge of a method that is left for a new reason."""

    def __init__(self, tool: str) -> None:
        self._tool = tool
        self._log = logging.getLogger(f"fuseo1_kernels.{tool}")
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self._merged: Counter[str] = Counter()
            self._left: Counter[tuple[str, str]] = Counter()

    def merged(self, method: str, tensors: int = 1) -> None:
        with self._lock:
            self._merged[method] += tensors

    def left(self, method: str, reason: str, tensors: int = 1) -> None:
        with self._lock:
            known = (method, reason) in self._left
            self._left[method, reason] += tensors
        if not known:
            level = logging.INFO if reason == NOTHING_TO_COMPUTE else logging.WARNING
            self._log.log(level, "%s is merged by %s's own code: %s", method, self._tool, reason)

    def counts(self) -> Counts:
        with self._lock:
            return Counts(self._tool, dict(self._merged), dict(self._left))


def _tensors(numbers: dict[str, int] | dict[tuple[str, str], int]) -> str:
    total = sum(numbers.values())
    return f"{total} tensor{'' if total == 1 else 's'}"


class LeftToTool(MergeError):
    """A merge that the kernels do not do; the message is the reason."""
