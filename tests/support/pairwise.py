"""Products of many axes: in the fast run a part in which every two values meet, with `slow` all of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def cover(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Combinations of indices below `axes`, few, in which every two indices of two axes stand together once."""

    def pairs(combination: tuple[int, ...]) -> set[tuple[tuple[int, int], tuple[int, int]]]:
        return set(itertools.combinations(enumerate(combination), 2))

    candidates = {c: pairs(c) for c in itertools.product(*map(range, axes))}
    missing = set().union(*candidates.values())
    chosen = []
    while missing:
        best = max(candidates, key=lambda c: len(candidates[c] & missing))
        missing -= candidates.pop(best)
        chosen.append(best)
    return chosen


def pairwise(
    names: str, *axes: Sequence[Any], indirect: Sequence[str] = ()
) -> pytest.MarkDecorator:
    """Parametrize a test by the product of `axes`; what is beyond the pairwise part of it is marked `slow`."""
    fast = set(cover([len(axis) for axis in axes]))
    cases = [
        pytest.param(
            *(axis[i] for axis, i in zip(axes, combination, strict=True)),
            id="-".join(_name(axis[i], i) for axis, i in zip(axes, combination, strict=True)),
            marks=() if combination in fast else pytest.mark.slow,
        )
        for combination in itertools.product(*(range(len(axis)) for axis in axes))
    ]
    return pytest.mark.parametrize(names, cases, indirect=list(indirect))


def _name(value: Any, index: int) -> str:
    name = getattr(value, "__name__", None) or str(value)
    return name if len(name) < 30 else str(index)
