"""The kernels inside mergekit 0.1.5: every way to a method, what is left to mergekit, and giving it back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch

pytest.importorskip("mergekit")

from mergekit import merge_methods
from mergekit.merge_methods import (
    GeneralizedTaskArithmeticMerge,
    TensorBatch,
    TensorGroup,
    generalized_task_arithmetic,
    merge_method,
    nearswap_merge,
    sce_merge,
)

import fuseo1_kernels
from fuseo1_kernels import MergeError
from fuseo1_kernels.integrations import mergekit as kernels
from support.tensors import assert_same_bits

pytestmark = pytest.mark.peer

TOPK = {"select_topk": 0.3}


@pytest.fixture(autouse=True)
def afterwards() -> Iterator[None]:
    kernels.reset_counts()
    yield
    kernels.uninstall()


@pytest.fixture
def installed() -> None:
    kernels.install()


def tensors(count: int = 4, dtype: torch.dtype = torch.bfloat16, **options: Any) -> list[Any]:
    generator = torch.Generator().manual_seed(7)
    drawn = [torch.randn(40, 33, generator=generator) for _ in range(count)]
    return [t.to(dtype).requires_grad_(options.get("requires_grad", False)) for t in drawn]


def ours(inputs: list[torch.Tensor], base: int) -> torch.Tensor:
    return fuseo1_kernels.merge_tensors(
        inputs, "sce", base_index=base, parameters={**TOPK, "variant": "mergekit"}
    )


# --- every way to a method ---------------------------------------------------------------


def by_name(inputs: list[torch.Tensor]) -> Any:
    return merge_methods.merge_tensors(inputs, "sce", base_index=1, parameters=TOPK)


WAYS: dict[str, Callable[[list[torch.Tensor]], Any]] = {
    "by name": by_name,
    "by an imported object": lambda inputs: merge_methods.merge_tensors(
        inputs, sce_merge, base_index=1, parameters=TOPK
    ),
    "by a group": lambda inputs: sce_merge.merge_group(
        TensorGroup.from_tensors(inputs, base_index=1, name="w"), **TOPK
    ),
    "by state dicts": lambda inputs: merge_methods.merge_state_dicts(
        [{"w": tensor} for tensor in inputs], "sce", base=1, parameters=TOPK
    )["w"],
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_sce_ends_in_the_kernels(installed: None, way: str) -> None:
    inputs = tensors()
    assert_same_bits(WAYS[way](inputs), ours(inputs, 1))
    assert kernels.counts().merged == {"sce": 1}
    assert kernels.counts().left == {}
    assert str(kernels.counts()) == "the kernels merged 1 tensor (sce 1)"


def test_dtypes_are_mergekits(installed: None) -> None:
    inputs = tensors(dtype=torch.float32)
    cast = [t.to(torch.float16) for t in inputs]
    merged = merge_methods.merge_tensors(
        inputs,
        "sce",
        base_index=1,
        parameters=TOPK,
        dtype=torch.float16,
        out_dtype=torch.float64,
    )
    assert_same_bits(merged, ours(cast, 1).double())


def test_nan_and_infinity_propagate(installed: None) -> None:
    inputs = tensors()
    inputs[2][3, 5], inputs[0][1, 1] = float("nan"), float("inf")
    merged = by_name(inputs)
    assert merged[3, 5].isnan() and merged[1, 1].isnan()
    assert merged.isnan().sum() == 2


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch, installed: None) -> None:
    """The plumbing is the same with any backend."""
    merge = partial(fuseo1_kernels.merge_tensors, backend="reference")
    monkeypatch.setattr(kernels, "merge_tensors", merge)


#: By method: number of tensors, parameters.
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "arcee_fusion": (2, {}),
    "breadcrumbs": (3, {"weight": [0.3, 0.6], "density": [0.5, 0.7], "gamma": [0.1, 0.05]}),
    "breadcrumbs_ties": (3, {"weight": 0.5, "density": 0.6, "lambda": 0.7}),
    "karcher": (3, {"max_iter": 4}),
    "linear": (3, {"weight": [0.5, 0.25, 0.75], "normalize": False}),
    "model_stock": (3, {}),
    "multislerp": (3, {"weight": [0.25, 0.5]}),
    "nearswap": (2, {"t": 0.25}),
    "nuslerp": (3, {"weight": [0.25, 0.5]}),
    "nuslerp, by column": (
        3,
        {"weight": [0.25, 0.5], "nuslerp_row_wise": True, "nuslerp_flatten": False},
    ),
    "passthrough": (1, {"scale": 0.5}),
    "ram": (3, {"epsilon": 0.5}),
    "ramplus_tl": (3, {"epsilon": 0.5, "r": 0.25, "alpha": 2.0}),
    "slerp": (2, {"t": 0.25}),
    "task_arithmetic": (3, {"weight": [0.25, -0.5], "lambda": 0.5}),
    "ties": (3, {"weight": [0.25, 0.5], "density": [0.5, 0.25]}),
}


@pytest.mark.parametrize("name", CASES)
def test_parameters_reach_the_methods(reference: None, name: str) -> None:
    (
        method,
        (count, parameters),
    ) = name.partition(",")[0], CASES[name]
    last = count - 1
    base = None if method in ("karcher", "linear", "passthrough") else last
    inputs = tensors(count)
    merged = merge_methods.merge_tensors(inputs, method, base_index=last, parameters=parameters)
    direct = fuseo1_kernels.merge_tensors(
        inputs, method, base_index=base, parameters=parameters, backend="reference"
    )
    assert_same_bits(merged, direct)
    assert kernels.counts().merged == {method: 1} and not kernels.counts().left


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_tensors_of_a_batch_have_coefficients_of_their_own(reference: None, method: str) -> None:
    rows = [tensors(2), [t + 1 for t in tensors(2)]]
    name = "weight" if method == "linear" else "t"
    values: list[Any] = [[0.25, 0.75], [0.5, 0.125]] if method == "linear" else [0.25, 0.625]
    merged = merge_methods.get(method)(
        [TensorGroup.from_tensors(row, base_index=0) for row in rows],
        parameters={name: merge_methods.PerGroupValues(values)},
    )
    for row, value, result in zip(rows, values, merged, strict=True):
        direct = fuseo1_kernels.merge_tensors(
            row,
            method,
            base_index=None if method == "linear" else 0,
            parameters={name: value},
            backend="reference",
        )
        assert_same_bits(result, direct)
    assert kernels.counts().merged == {method: 2}


def test_a_batch_may_be_strided(reference: None) -> None:
    stack = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(1)).transpose(0, 1)
    batch = TensorBatch((stack, stack + 1))
    merged = merge_methods.get("linear").merge_batch(batch, weight=torch.tensor([[1.0, 3.0]] * 2))
    assert merged.shape == stack.shape and merged.is_contiguous()
    torch.testing.assert_close(merged, stack + 0.75)


def dare(name: str | None, **options: Any) -> Any:
    return merge_methods.merge_tensors(
        tensors(3), "dare_linear", base_index=0, parameters={"weight": 1.0, "density": 0.5},
        name=name, **options,
    )  # fmt: skip


def test_random_masks_follow_torchs_seed_and_the_tensors_name(reference: None) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        first, other = dare("a"), dare("b")
        assert_same_bits(dare("a"), first)
        assert not torch.equal(first, other)
        unnamed = [dare(None), dare(None)]
        assert not torch.equal(*unnamed)
        torch.manual_seed(5)
        assert_same_bits(dare(None), unnamed[0])
        torch.manual_seed(6)
        assert not torch.equal(dare("a"), first)
    assert kernels.counts().merged == {"dare_linear": 7}


# --- what is left to mergekit ------------------------------------------------------------


def left() -> set[str]:
    assert kernels.counts().merged == {}
    return {reason for _, reason in kernels.counts().left}


def test_gradients_are_mergekits(installed: None, caplog: pytest.LogCaptureFixture) -> None:
    inputs = tensors(requires_grad=True)
    with caplog.at_level(logging.WARNING, "fuseo1_kernels.mergekit"):
        by_name(inputs).float().sum().backward()
        by_name(inputs)
    assert inputs[1].grad is not None
    assert left() == {"gradients are recorded"}
    assert caplog.messages == ["sce is merged by mergekit's own code: gradients are recorded"]
    assert str(kernels.counts()) == (
        "the kernels merged 0 tensors, mergekit's own code 2 tensors (sce 2: gradients are recorded)"
    )
    with torch.no_grad():
        assert_same_bits(by_name(inputs), ours(inputs, 1))
    assert kernels.counts().merged == {"sce": 1}


class Mine(torch.Tensor):
    """Another class of tensors."""


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (tensors(dtype=torch.float64), "float64"),
        ([t.to("meta") for t in tensors(2, torch.float32)], "tensors on meta"),
        ([t.as_subclass(Mine) for t in tensors()], "tensors of type Mine"),
        (tensors(1), "nothing to compute"),
    ],
)
def test_what_is_left_to_mergekit(installed: None, inputs: list[Any], reason: str) -> None:
    def merge() -> Any:
        group = TensorGroup.from_tensors(inputs, base_index=0)
        if inputs[0].is_meta:
            return nearswap_merge.merge_group(group, t=0.1)
        return sce_merge.merge_group(group, **TOPK)

    merged = merge()
    assert left() == {reason}
    kernels.uninstall()
    assert merged.device == inputs[0].device and type(merged) is type(merge())
    assert merged.is_meta or torch.equal(merged, merge())
    assert len(inputs) > 1 or merged is inputs[0]


def test_what_the_kernels_refuse_fails_as_in_mergekit(installed: None) -> None:
    parameters = {"weight": 1.0, "density": 0.5, "epsilon": 1.5}
    with pytest.raises(ValueError, match="psilon"):
        merge_methods.merge_tensors(tensors(3), "della", base_index=0, parameters=parameters)
    assert {method for method, _ in kernels.counts().left} == {"della"}


def test_methods_without_a_name_are_mergekits(installed: None) -> None:
    mine = GeneralizedTaskArithmeticMerge(
        consensus_method=generalized_task_arithmetic.ConsensusMethod.count,
        sparsification_method=None,
        default_normalize=False,
        default_rescale=False,
        method_name="ties",
        method_pretty_name=None,
        method_reference_url=None,
    )
    merge_methods.merge_tensors(tensors(), mine, base_index=0, parameters={"weight": 1.0})
    assert kernels.counts().left == {("another ties", "not a method of the kernels"): 1}


def test_buffers_are_copied_by_mergekit(installed: None) -> None:
    states = [{"w": t, "steps": torch.tensor(3)} for t in tensors()]
    merged = merge_methods.merge_state_dicts(states, "sce", base=1, parameters=TOPK)
    assert merged["steps"].dtype == torch.int64 and merged["steps"] == 3
    assert kernels.counts().merged == {"sce": 1} and kernels.counts().left == {}


# --- to and fro --------------------------------------------------------------------------


def functions() -> dict[str, Any]:
    of_objects = {
        m.spec.name: vars(m).get("implementation") for m in merge_methods.registered_methods()
    }
    return {**of_objects, "class": vars(GeneralizedTaskArithmeticMerge)["merge_group"]}


def test_uninstall_restores_everything() -> None:
    before = functions()
    kernels.install()
    kernels.install()
    during = functions()
    assert all(during[name] is not before[name] for name in before if before[name])
    kernels.uninstall()
    kernels.uninstall()
    after = functions()
    assert all(after[name] is before[name] for name in before)
    by_name(tensors())
    assert kernels.counts().merged == {}


def test_a_patch_on_top_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.install()
    below, calls = sce_merge.implementation, []

    def counted(group: Any, **parameters: Any) -> torch.Tensor:
        calls.append(group)
        result: torch.Tensor = below(group, **parameters)
        return result

    monkeypatch.setattr(sce_merge, "implementation", counted)
    by_name(tensors())
    kernels.uninstall()
    by_name(tensors())
    assert len(calls) == 2 and kernels.counts().merged == {"sce": 1}
    monkeypatch.undo()  # what was there when it was patched: ours, which calls mergekit's
    by_name(tensors())
    assert kernels.counts().merged == {"sce": 1}


def test_a_programs_own_methods_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(group: TensorGroup) -> Any:
        return group.entries[0].tensor

    kernel.__annotations__ = {"group": TensorGroup, "return": torch.Tensor}
    mine = merge_method(kernel, name="mine")
    monkeypatch.setitem(merge_methods.registry._METHODS, "mine", mine)
    kernels.install()
    assert mine.implementation is kernel


def test_merges_at_once_are_all_counted(installed: None) -> None:
    inputs = tensors()
    expected = ours(inputs, 1)
    with ThreadPoolExecutor(4) as pool:
        for merged in pool.map(by_name, [inputs] * 32):
            assert_same_bits(merged, expected)
    assert kernels.counts().merged == {"sce": 32}


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "version", lambda _: "0.1.4")
    with pytest.raises(MergeError, match=r"mergekit 0\.1\.5; this is 0\.1\.4"):
        kernels.install()
