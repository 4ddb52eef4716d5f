"""Intervals of a file, joined where they touch."""

from __future__ import annotations

from collections.abc import Iterator


class Intervals:
    """Disjoint intervals [begin, end); touching ones are joined."""

    def __init__(self) -> None:
        self._end_of: dict[int, int] = {}
        self._begin_of: dict[int, int] = {}

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._end_of.items())

    def add(self, begin: int, end: int) -> tuple[int, int]:
        """Add [begin, end), which overlaps none, and return the interval that it is now part of."""
        begin = self._begin_of.pop(begin, begin)
        end = self._end_of.pop(end, end)
        self._end_of[begin], self._begin_of[end] = end, begin
        return begin, end
