"""merge_state_dicts: modules and state dictionaries, name by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fuseo1_kernels import merge_state_dicts, merge_tensors
from fuseo1_kernels.errors import ConfigError, MergeError
from support.calls import error, sce
from support.tensors import BF16, assert_same_bits


class Model(torch.nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = torch.nn.Linear(9, 5, dtype=BF16)
        self.norm = torch.nn.BatchNorm1d(5)  # has an integer buffer
        with torch.no_grad():
            self.norm.weight.add_(torch.randn(5) * 0.01)


def models(n: int = 3) -> list[Model]:
    return [Model(seed) for seed in range(n)]


def test_modules_and_dictionaries(backend: str) -> None:
    modules = models()
    states: list[Any] = [m.state_dict() for m in modules]
    before = [{k: v.clone() for k, v in s.items()} for s in states]
    given: Any
    base: Any
    for given, base in (
        (modules, 1),
        (states, 1),
        ([modules[0], states[1], modules[2]], 1),
        (dict(zip("abc", states, strict=True)), "b"),
    ):
        merged = merge_state_dicts(given, "sce", base=base, parameters=sce(0.5), backend=backend)
        assert list(merged) == list(states[0])
        for name, tensor in merged.items():
            tensors = [s[name] for s in states]
            if tensors[0].is_floating_point():
                expected = merge_tensors(
                    tensors, "sce", base_index=1, parameters=sce(0.5), backend="reference"
                )
                assert_same_bits(tensor, expected)
            else:
                assert torch.equal(tensor, tensors[0])
            assert not tensor.requires_grad
    for state, was in zip(states, before, strict=True):
        assert all(torch.equal(state[k], was[k]) for k in was)
    modules[0].load_state_dict(merged)


def test_integer_tensors_are_copied_if_equal() -> None:
    states = [{"w": torch.randn(4), "steps": torch.tensor([3, 4])} for _ in range(3)]
    merged = merge_state_dicts(states, "sce", base=0)
    assert torch.equal(merged["steps"], states[0]["steps"])
    assert all(merged["steps"].data_ptr() != s["steps"].data_ptr() for s in states)
    states[2]["steps"] = torch.tensor([3, 5])
    message = error(lambda: merge_state_dicts(states, "sce", base=0))
    assert "steps" in message and "differs between the models" in message
    states[2]["steps"] = torch.tensor([3.0, 4.0])  # equal, but not the same thing
    for order in (states, states[::-1]):
        assert "steps" in error(lambda: merge_state_dicts(order, "sce", base=0))  # noqa: B023


def test_names_that_not_all_models_have() -> None:
    states = [{"b": torch.randn(4), "a": torch.randn(4)} for _ in range(3)]
    states[1]["extra"] = torch.randn(4)
    message = error(lambda: merge_state_dicts(states, "sce", base=0))
    assert "model 1 has tensors that not all models have: extra" in message
    merged = merge_state_dicts(states, "sce", base=0, strict=False)
    assert list(merged) == ["b", "a"]
    del states[2]["b"]
    message = error(
        lambda: merge_state_dicts({**dict(zip("xyz", states, strict=True))}, "sce", base="x")
    )
    assert "model 'x' has tensors that not all models have: b" in message
    assert list(merge_state_dicts(states, "sce", base=0, strict=False)) == ["a"]


def test_misuse_of_merge_state_dicts() -> None:
    states = [{"w": torch.randn(4)} for _ in range(3)]
    given: Any
    base: Any
    for given, base, message in (
        (states, 7, "base 7 is none of the models: 0, 1, 2"),
        ({"a": states[0], "b": states[1]}, "c", "base 'c' is none of the models: 'a', 'b'"),
        (states[:1], 0, "at least 1 model beside the base"),
        ([], 0, "base 0 is none"),
        ([states[0], [1, 2]], 0, "model 1 is neither a module nor a mapping"),
    ):
        with pytest.raises(MergeError, match=message):
            merge_state_dicts(given, "sce", base=base)
    for method, parameters in (("ties", None), ("sce", {"select_topk": 2})):
        with pytest.raises(ConfigError) as caught:
            merge_state_dicts(states, method, base=0, parameters=parameters)
        assert not str(caught.value).startswith("tensor")


def test_what_is_wrong_with_a_tensor_is_said_with_its_name() -> None:
    states = [{"ok": torch.randn(4), "bad": torch.randn(4)} for _ in range(3)]
    states[2]["bad"][1] = torch.nan
    message = error(lambda: merge_state_dicts(states, "sce", base=1))
    assert message.startswith("tensor bad: NaN or infinite elements: model 2 has 1")
    assert merge_state_dicts(states, "sce", base=1, nonfinite="propagate")["bad"].isnan().sum() == 1
    states[2]["bad"] = torch.randn(5)
    assert error(lambda: merge_state_dicts(states, "sce", base=1)).startswith("tensor bad: ")
