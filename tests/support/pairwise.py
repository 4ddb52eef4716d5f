"""Many cases: in the fast run a part of them that meets every value, or every two; with `slow` all of them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def cover(axes: Sequence[int], together: int = 2) -> list[tuple[int, ...]]:
    """Combinations of indices below `axes`, few, in which every `together` indices of different axes meet."""

    def pairs(combination: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
        return set(itertools.combinations(enumerate(combination), together))

    candidates = {c: pairs(c) for c in itertools.product(*map(range, axes))}
    missing = set[tuple[tuple[int, int], ...]]().union(*candidates.values())
    used = Counter[tuple[int, int]]()

    def gain(combination: tuple[int, ...]) -> tuple[int, int]:
        """What is new in it; among equals, the values that were used least come first."""
        return len(candidates[combination] & missing), -sum(used[v] for v in enumerate(combination))

    chosen: list[tuple[int, ...]] = []
    while missing:
        best = max(candidates, key=gain)
        missing -= candidates.pop(best)
        used.update(enumerate(best))
        chosen.append(best)
    return chosen


def pairwise(
    names: str, *axes: Sequence[Any], together: int = 2, indirect: Sequence[str] = ()
) -> pytest.MarkDecorator:
    """Parametrize a test by the product of `axes`, `slow` but for a part in which every `together` values meet."""
    fast = set(cover([len(axis) for axis in axes], together))
    cases = [
        pytest.param(
            *(axis[i] for axis, i in zip(axes, combination, strict=True)),
            id="-".join(_name(axis[i], i) for axis, i in zip(axes, combination, strict=True)),
            marks=() if combination in fast else pytest.mark.slow,
        )
        for combination in itertools.product(*(range(len(axis)) for axis in axes))
    ]
    return pytest.mark.parametrize(names, cases, indirect=list(indirect))


def sample(cases: Iterable[Any], every: int) -> list[Any]:
    """Return `cases`, as parameters, `slow` but for every `every`-th."""
    slow = pytest.mark.slow
    return [pytest.param(c, marks=() if i % every == 0 else slow) for i, c in enumerate(cases)]


def _name(value: Any, index: int) -> str:
    name = getattr(value, "__name__", None) or str(value)
    return name if len(name) < 30 else str(index)
