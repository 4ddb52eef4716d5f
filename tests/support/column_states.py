"""Models whose tensors are merged by columns."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from support.models import State, tuned

SHAPES: dict[str, tuple[int, ...]] = {
    "matrix": (301, 67),
    "tall": (1001, 3),
    "wide": (3, 1001),
    "three": (5, 7, 11),
    "four": (4, 3, 1, 2),
    "row": (1, 40),
    "column": (40, 1),
    "vector": (40,),
    "scalar": (),
    "no rows": (0, 3),
    "no columns": (3, 0),
    "none": (3, 0, 5),
}


def states(
    *dtypes: torch.dtype, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> list[State]:
    g = torch.Generator().manual_seed(1)
    base = {n: torch.randn(s, generator=g) * 0.05 for n, s in (shapes or SHAPES).items()}
    first = {n: t.to(dtypes[0]) for n, t in base.items()}
    return [first, *(tuned(base, i, dtype) for i, dtype in enumerate(dtypes[1:], 1))]
