"""Short ways to call the in-memory functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fuseo1_kernels.errors import MergeError


def sce(topk: float = 1.0, variant: str = "fuseo1") -> dict[str, object]:
    return {"select_topk": topk, "variant": variant}


def error(call: Callable[[], object], kind: type[MergeError] = MergeError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)
