"""Linear combinations of vectors of which only the inner products are known, for the spherical methods.

A combination is a list of coefficients; gram[i][j] is the inner product of vectors i and j, in fp64. It is a sum of
products that were rounded to fp32. So if a combination's parts cancel, all but a share s of their lengths, its length
is known to about 2^-24 / s^2, and if s is below 2^-10 it is mere rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

GramMatrix = Sequence[Sequence[float]]

#: If no more than this share of its parts' lengths is left, nothing is known of a combination.
ROUNDING = 2.0**-10


def inner(a: Sequence[float], b: Sequence[float], gram: GramMatrix) -> float:
    """The inner product of two combinations."""
    return math.fsum(
        x * y * gram[i][j] for i, x in enumerate(a) for j, y in enumerate(b) if x and y
    )


def norm(a: Sequence[float], gram: GramMatrix) -> float:
    """The length of a combination."""
    return math.sqrt(max(inner(a, a, gram), 0.0))


def uncancelled(a: Sequence[float], gram: GramMatrix) -> float:
    """The sum of the lengths of a combination's parts."""
    return math.fsum(abs(x) * math.sqrt(gram[i][i]) for i, x in enumerate(a))


def axis(i: int, n: int) -> list[float]:
    """The combination that is vector i of n."""
    return [float(i == j) for j in range(n)]


def times(factor: float, a: Sequence[float]) -> list[float]:
    return [factor * x for x in a]


def plus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x + y for x, y in zip(a, b, strict=True)]


def weighted(weights: Sequence[float], vectors: Sequence[Sequence[float]]) -> list[float]:
    """The weighted sum of one or more combinations."""
    total = [0.0] * len(vectors[0])
    for weight, vector in zip(weights, vectors, strict=True):
        total = plus(total, times(weight, vector))
    return total


def as_cosine(ratio: float) -> float:
    """`ratio` clamped to [-1, 1], which rounding may have exceeded."""
    return max(-1.0, min(1.0, ratio))


def arc(t: float, angle: float) -> tuple[float, float]:
    """The coefficients of both ends for the point at t on the arc of that angle."""
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
