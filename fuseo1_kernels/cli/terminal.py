"""Prints messages: escapes names, bounds their length, survives closed and full streams."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from ..errors import counted

#: The most characters of a message, and of each of its lines where it has several.
MOST, MOST_OF_A_LINE = 2000, 500
# For the words that say how much was left out.
_ROOM = 60


def escaped(text: str, most: int = MOST) -> str:
    """Return `text` on one line of at most `most` characters.

    Control characters, line breaks, directions and all else that is not printable are escaped: `\\n`, `\\x1b`,
    `\\u202e`. What is too long is left out of the middle, with its count.
    """
    if len(text) <= most and text.isprintable():
        return text

    def size(index: int) -> int:
        return len(_escaped(text[index]))

    head, tail = _ends(len(text), size, most)
    if head + tail == len(text):
        return _escaped(text)
    head, tail = _ends(len(text), size, most - _ROOM)
    left = f" [{len(text) - head - tail:,} characters left out] "
    return _escaped(text[:head]) + left + _escaped(text[len(text) - tail :])


def as_message(first: str, *details: str) -> str:
    """Return a message of at most MOST characters: a line, and an indented line for each of `details`."""
    if not details:
        return escaped(first)
    lines = [escaped(line, MOST_OF_A_LINE) for line in (first, *details)]
    head, tail = _ends(len(lines), lambda index: len(lines[index]) + len("\n  "), MOST - _ROOM)
    left = len(lines) - head - tail
    if left:
        lines[head : len(lines) - tail] = [f"[{counted(left, 'line')} left out]"]
    return "\n  ".join(lines)


def say(first: str, *details: str, stream: TextIO | None = None) -> None:
    """Print a message to `stream` (default: standard error). What cannot be written is dropped."""
    stream = stream or sys.stderr
    target = stream if isinstance(stream, _Stream) else _Stream(stream)
    target.write(as_message(first, *details) + "\n")
    target.flush()


def say_json(data: Mapping[str, Any]) -> None:
    """Print `data` to standard output as JSON: one line of printable ASCII."""
    # JSON's escapes leave one control character.
    sys.stdout.write(json.dumps(data).replace("\x7f", "\\u007f") + "\n")


@contextmanager
def standard_streams(program: str) -> Iterator[None]:
    """Stands for standard output and error: they may be closed, full or in ASCII, and never raise an error.

    If standard output fails in another way than that its reader has gone, a message of `program` says so in the end.
    Warnings become notes.
    """
    # A file of the model must not get the number of a stream that is closed: what others print would be written to it.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    before = sys.stdout, sys.stderr
    out, err = _Stream(sys.stdout), _Stream(sys.stderr)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: say(f"note: {message}")
            yield
    finally:
        # Python writes at its exit what is still in a buffer, and complains if it cannot.
        out.flush()
        err.flush()
        if out.error is not None and not isinstance(out.error, BrokenPipeError):
            reason = getattr(out.error, "strerror", None) or out.error
            say(f"{program}: standard output cannot be written ({reason})")
        sys.stdout, sys.stderr = before


class _Stream:
    """A text stream that takes all characters, and drops what it cannot write: `error` is the first reason."""

    def __init__(self, stream: TextIO | None) -> None:
        # None: Python found it closed.
        self._stream = stream or open(os.devnull, "w")  # noqa: SIM115
        self.encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self.error: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        data = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        self._try(lambda: self._stream.write(data))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        return not self._stream.closed and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (OSError, ValueError) as error:  # ValueError: closed
            self.error = self.error or error
            # The buffer, and all that follows, is discarded.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
                self._stream.flush()


def _ends(count: int, size: Callable[[int], int], room: int) -> tuple[int, int]:
    """Return how many of `count` items to keep at the beginning and at the end, so that their sizes fit into `room`."""
    head = tail = 0
    while head + tail < count:
        at_head = head <= tail
        room -= size(head if at_head else count - 1 - tail)
        if room < 0:
            break
        head, tail = (head + 1, tail) if at_head else (head, tail + 1)
    return head, tail


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if (
        0xDC80 <= code <= 0xDCFF
    ):  # a byte that is not UTF-8, as Python keeps it in the name of a file
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
