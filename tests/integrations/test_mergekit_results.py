"""Every method beside mergekit 0.1.5: the same parameters and defaults, and in float64 the same results.

What differs is fp32's rounding of inputs and outputs, and no more.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("mergekit", reason="mergekit is not installed (the extra `test` has it)")

from mergekit.merge_methods import api, registered_methods

from fuseo1_kernels import merge_tensors
from fuseo1_kernels.methods import METHODS
from support.method_cases import BY_COLUMN
from support.tensors import siblings

pytestmark = pytest.mark.peer

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
    *[("nuslerp", 2 + base, base, {"weight": [1.0, 2.0], **BY_COLUMN}) for base in (True, False)],
    ("multislerp", 4, True, {"weight": [1.0, 2.0, 3.0]}),
    ("multislerp", 4, False, {"weight": [1.0, 2.0, 3.0, 4.0]}),
    ("multislerp", 4, True, {"weight": [1.0, 2.0, 3.0], "normalize_weights": False}),
    ("model_stock", 4, True, {}),
    ("model_stock", 4, True, {"filter_wise": True}),
    ("karcher", 4, False, {}),
    ("nearswap", 2, True, {"t": 0.0005}),
    ("arcee_fusion", 2, True, {}),
    ("ram", 4, True, {}),
    ("ram", 4, True, {"epsilon": 1e-3}),
    ("ramplus_tl", 4, True, {"epsilon": 1e-3}),
    ("ramplus_tl", 3, True, {"epsilon": 2e-3, "r": 0.7, "alpha": 5.0}),
    ("passthrough", 1, False, {"scale": 1.5}),
    ("sce", 4, True, {"select_topk": 0.3}),
]


#: Methods that mergekit does not have.
ONLY_HERE = {"average"}
#: Parameters that mergekit does not have, and why we do.
ONLY_OURS = {("sce", "variant")}  # mergekit has one rule for SCE, today's
#: Of mergekit's scopes both that give each model a value: with the base's among them or without.
PER_MODEL = {"input": True, "non_base": True, "shared": False}
KINDS = {float: "float", float | None: "float", int: "int", bool: "bool"}


def test_parameters_and_defaults_are_mergekits() -> None:
    specs = {m.spec.name: m.spec for m in registered_methods()}
    assert not specs.keys() - METHODS.keys()
    assert METHODS.keys() - specs.keys() == ONLY_HERE
    for name in METHODS.keys() & specs.keys():
        method = METHODS[name]
        expected = {
            p.name: (
                KINDS[p.value_type],
                PER_MODEL[p.scope.value],
                p.required,
                # True is equal to 1, but another default.
                repr(None if p.required else p.default),
            )
            for p in specs[name].parameters
        }
        found = {
            p.name: (p.kind, p.per_model, p.required, repr(p.default))
            for p in method.parameters.values()
        }
        ours = {(name, parameter) for parameter in found.keys() - expected.keys()}
        assert ours == {pair for pair in ONLY_OURS if pair[0] == name}
        assert expected == {parameter: found[parameter] for parameter in expected}, name
        assert method.base == specs[name].contract.base.value


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[3]}")
def test_as_mergekit_in_float64(backend: str, case: tuple[str, int, bool, dict[str, Any]]) -> None:
    method, n, has_base, parameters = case
    tensors = siblings((64, 48), n - 1, torch.float32)
    base: dict[str, Any] = {"base_index": 0} if has_base else {}
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


def compare_vectors(backend: str, tensors: list[torch.Tensor], row_wise: bool) -> None:
    """NuSLERP of columns, which mergekit calls rows, or of rows: to fp32's rounding."""
    parameters: dict[str, Any] = {"weight": [1.0, 2.0], **BY_COLUMN, "nuslerp_row_wise": row_wise}
    base: dict[str, Any] = {"base_index": 0} if len(tensors) == 3 else {}
    wide = [t.double() for t in tensors]
    expected = api.merge_tensors(wide, "nuslerp", parameters=parameters, **base)
    merged = merge_tensors(tensors, "nuslerp", parameters=parameters, backend=backend, **base)
    assert merged.shape == tensors[0].shape
    assert float((merged.double() - expected).abs().max()) < 2.0**-22 * float(expected.abs().max())


@pytest.mark.parametrize("row_wise", [True, False])
@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize(
    "shape", [(37,), (1, 9), (9, 1), (3, 5, 7), (1, 5, 7), (5, 7, 1), (2, 3, 4, 5)], ids=str
)
def test_vectors_of_any_shape(
    backend: str, shape: tuple[int, ...], has_base: bool, row_wise: bool
) -> None:
    """Columns run along the first dimension, whatever the others are, rows along the last."""
    g = torch.Generator().manual_seed(3)
    # None are opposed: fp32 does not tell which way the arc goes then.
    targets = [torch.rand(shape, generator=g) for _ in range(2)]
    compare_vectors(backend, [torch.rand(shape, generator=g) - 1] * has_base + targets, row_wise)


@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize(
    ("shape", "row_wise"),
    [((), True), ((1,), False), ((1, 99), True), ((99, 1), False), ((1, 5, 7), True)],
)
def test_vectors_of_one_element(
    backend: str, shape: tuple[int, ...], row_wise: bool, has_base: bool
) -> None:
    """They are parallel, opposed ones too, unless one is shorter than what mergekit divides by."""
    g = torch.Generator().manual_seed(5)
    tensors = [torch.randn(shape, generator=g) for _ in range(2)]
    compare_vectors(backend, [torch.zeros(shape)] * has_base + tensors, row_wise)
    compare_vectors(
        backend, [torch.zeros(shape)] * has_base + [tensors[0], tensors[1] * 3e-8], row_wise
    )


@pytest.mark.parametrize(
    "values",
    [
        (0.192, 1.264, -1.29),
        (1.5, 2.5, -3.5),
        (1.0, -2.0),
        (-0.7, 0.3, -0.9, 1.1),
        (-0.3, 0.7, 0.9, -1.1, -0.2),
    ],
)
def test_models_of_one_element_may_be_opposed(backend: str, values: tuple[float, ...]) -> None:
    """They are so exactly, and have no direction along the sphere from there."""
    tensors = [torch.tensor([x]) for x in values]
    for method, given in (("karcher", tensors), ("model_stock", [torch.zeros(1), *tensors])):
        base: dict[str, Any] = {} if method == "karcher" else {"base_index": 0}
        expected = api.merge_tensors([t.double() for t in given], method, **base)
        merged = merge_tensors(given, method, backend=backend, **base)
        assert float(merged) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("noise", [0.03, 0.1, 0.5])
def test_models_may_be_nearly_opposed(backend: str, noise: float) -> None:
    """Two degrees off and more, fp32 knows well enough which way the arc goes."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(64, 64, generator=g)
    tensors = [f * x + noise * torch.randn(64, 64, generator=g) for f in (1, -2, -3)]
    cases: list[tuple[str, int, dict[str, Any]]] = [
        ("karcher", 3, {}),
        ("nuslerp", 2, {"weight": [1.0, 2.0]}),
        ("multislerp", 2, {"weight": 1.0}),
    ]
    for method, models, parameters in cases:
        given = tensors[:models]
        expected = api.merge_tensors([t.double() for t in given], method, parameters=parameters)
        merged = merge_tensors(given, method, parameters=parameters, backend=backend)
        most = float(expected.abs().max())
        assert float((merged.double() - expected).abs().max()) < 1e-5 * most
