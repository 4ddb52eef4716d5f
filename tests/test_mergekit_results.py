"""Every method beside mergekit 0.1.5 in float64: what differs is fp32's rounding of inputs and outputs, and no more."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("mergekit", reason="mergekit is not installed (the extra `test` has it)")

from mergekit.merge_methods import api
from tensors import siblings

from fuseo1_kernels import merge_tensors

#: method, tensors, whether the first is the base, parameters
CASES: list[tuple[str, int, bool, dict[str, Any]]] = [
    ("task_arithmetic", 4, True, {"weight": [0.5, 0.3, -0.2]}),
    ("task_arithmetic", 4, True, {"weight": [0.5, 0.3, -0.2], "normalize": True, "lambda": 0.7}),
    ("ties", 4, True, {"weight": [0.5, 0.3, 0.4], "density": 0.2}),
    ("ties", 4, True, {"weight": [1.0, -0.5, 1.0], "density": 0.5}),
    ("ties", 4, True, {"weight": [0.5, 0.3, 0.4], "density": [0.2, 1.0, 0.0], "rescale": True}),
    ("ties", 4, True, {"weight": 1.0, "density": 0.3, "normalize": False, "lambda": 1.5}),
    ("breadcrumbs", 4, True, {"weight": 1.0, "density": 0.9, "gamma": 0.01}),
    ("breadcrumbs", 4, True, {"weight": 1.0, "density": 0.5, "gamma": 0.0, "rescale": True}),
    ("breadcrumbs_ties", 4, True, {"weight": [0.3, 0.3, 1.0], "density": 0.9, "gamma": 0.2}),
    ("dare_ties", 4, True, {"weight": 1.0}),
    ("dare_linear", 4, True, {"weight": [1.0, 2.0, 3.0]}),
    ("linear", 4, False, {"weight": [1.0, 2.0, 3.0, 4.0]}),
    ("linear", 4, False, {"weight": [0.1, 0.2, 0.3, 0.1], "normalize": False}),
    ("slerp", 2, True, {"t": 0.3}),
    ("nuslerp", 3, True, {"weight": [1.0, 2.0]}),
    ("nuslerp", 2, False, {"weight": [1.0, 2.0]}),
    ("nuslerp", 3, True, {"weight": [1.0, 2.0], "nuslerp_flatten": False}),
    ("nuslerp", 2, False, {"weight": [1.0, 2.0], "nuslerp_flatten": False}),
    ("multislerp", 4, True, {"weight": [1.0, 2.0, 3.0]}),
    ("multislerp", 4, False, {"weight": [1.0, 2.0, 3.0, 4.0]}),
    ("multislerp", 4, True, {"weight": [1.0, 2.0, 3.0], "normalize_weights": False}),
    ("model_stock", 4, True, {}),
    ("model_stock", 4, True, {"filter_wise": True}),
    ("karcher", 4, False, {}),
    ("nearswap", 2, True, {"t": 0.0005}),
    ("arcee_fusion", 2, True, {}),
    ("passthrough", 1, False, {"scale": 1.5}),
    ("sce", 4, True, {"select_topk": 0.3}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[3]}")
def test_as_mergekit_in_float64(backend: str, case: tuple[str, int, bool, dict[str, Any]]) -> None:
    method, n, has_base, parameters = case
    tensors = siblings((64, 48), n - 1, torch.float32)
    base = {"base_index": 0} if has_base else {}
    wide = [t.double() for t in tensors]
    expected = api.merge_tensors(wide, method, parameters=parameters, **base)
    variant = {"variant": "mergekit"} if method == "sce" else {}
    merged = merge_tensors(
        tensors, method, parameters={**parameters, **variant}, backend=backend, **base
    )
    # Half a unit of the largest output, and of the largest task vector a few.
    most = float(expected.abs().max())
    assert float((merged.double() - expected).abs().max()) < 2.0**-23 * most
    assert not torch.equal(merged, tensors[0]) or method == "passthrough"


@pytest.mark.parametrize(("method", "column"), [("model_stock", True), ("nuslerp", False)])
def test_rows_are_merged_as_tensors_of_their_own(backend: str, method: str, column: bool) -> None:
    rows: dict[str, Any] = {"filter_wise": True} if column else {"nuslerp_flatten": False}
    own: dict[str, Any] = {} if column else {"weight": 1.0}
    tensors = siblings((5, 37), 2, torch.bfloat16)
    merged = merge_tensors(
        tensors, method, base_index=0, parameters={**own, **rows}, backend=backend
    )
    for i, row in enumerate(merged):
        parts = [t[i] for t in tensors]
        alone = merge_tensors(parts, method, base_index=0, parameters=own, backend=backend)
        assert torch.equal(row, alone)
