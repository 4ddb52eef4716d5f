"""Files kept open for many readers, as many as the process may have: those that nobody uses are closed first."""

from __future__ import annotations

import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Generic, Protocol, TypeVar

# The most files kept open, and their share of the descriptors that the process may have.
_MOST, _SHARE = 2048, 4


def most_open() -> int:
    """Return how many files may be kept open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(_MOST, soft // _SHARE)) if soft >= 0 else _MOST


class Closable(Protocol):
    """Something open."""

    def close(self) -> None:
        """Close it."""


_File = TypeVar("_File", bound=Closable)


class _Entry(Generic[_File]):
    def __init__(self, file: _File) -> None:
        self.file = file
        self.users = 0


class OpenFiles(Generic[_File]):
    """Open files by key. A file in use is never closed, so there can be more than the limit. Thread-safe."""

    def __init__(self, before_closing: Callable[[_File], None] | None = None) -> None:
        """`before_closing` is called with a file that is closed to make room; another one will be opened later."""
        self._before_closing = before_closing
        self._entries: OrderedDict[Hashable, _Entry[_File]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def using(self, key: Hashable, open_file: Callable[[], _File]) -> Iterator[_File]:
        """Hold the file of `key` open, which `open_file` opens if it is not.

        Raises what `open_file` raises, and what closing another file does.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self._make_room()
                entry = self._entries[key] = _Entry(open_file())
            else:
                self._entries.move_to_end(key)
            entry.users += 1
        try:
            yield entry.file
        finally:
            with self._lock:
                entry.users -= 1

    def close(self, matches: Callable[[Hashable], bool] = lambda key: True) -> None:
        """Close the files whose keys match; all of them, even if an error is raised. Nobody may use them any more."""
        with self._lock, ExitStack() as stack:
            for key in [key for key in self._entries if matches(key)]:
                stack.callback(self._entries.pop(key).file.close)

    def _make_room(self) -> None:
        """Close those used longest ago until one more may be open. The lock is held."""
        most = most_open()
        if len(self._entries) < most:
            return
        idle = [key for key, entry in self._entries.items() if entry.users == 0]
        for key in idle[: len(self._entries) - most + 1]:
            if self._before_closing is not None:
                self._before_closing(self._entries[key].file)
            self._entries.pop(key).file.close()
