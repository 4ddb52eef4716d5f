"""Intervals of a file that grow together, against a set of bytes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fuseo1_kernels.checkpoint.intervals import Intervals

SIZE = 60
partitions = st.sets(st.integers(1, SIZE - 1)).map(lambda cuts: [0, *sorted(cuts), SIZE])


@given(bounds=partitions, data=st.data())
def test_intervals_that_touch_are_one(bounds: list[int], data: st.DataObject) -> None:
    """In whatever order they are added, and however many of them: every answer is the whole run of bytes."""
    parts = list(pairwise(bounds))
    order = data.draw(st.permutations(parts))[: data.draw(st.integers(1, len(parts)))]
    intervals, covered = Intervals(), set[int]()
    for begin, end in order:
        covered |= set(range(begin, end))
        first, last = begin, end
        while first - 1 in covered:
            first -= 1
        while last in covered:
            last += 1
        assert intervals.add(begin, end) == (first, last)


def test_a_gap_keeps_them_apart() -> None:
    intervals = Intervals()
    assert intervals.add(0, 10) == (0, 10)
    assert intervals.add(11, 20) == (11, 20)
    assert intervals.add(30, 40) == (30, 40)
    assert intervals.add(10, 11) == (0, 20)
    assert intervals.add(20, 30) == (0, 40)
