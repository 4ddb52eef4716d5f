"""PEFT's merging of adapters by the kernels, beside its own functions and on a real LoRA model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("peft", reason="PEFT is not installed (the extra `test` has it)")

import peft.tuners.lora.model as lora_model
import peft.utils.merge_utils as merge_utils
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from fuseo1_kernels.integrations import peft as integration

pytestmark = pytest.mark.peer

NAMES = ("task_arithmetic", "magnitude_prune", "dare_linear", "ties", "dare_ties")
OWN = {name: getattr(merge_utils, name) for name in NAMES}


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    integration.reset_counts()
    integration.install()
    yield
    integration.uninstall()


def tensors(dtype: torch.dtype = torch.float32, n: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(37, 19, generator=generator).to(dtype) for _ in range(n)]


def test_installed_and_uninstalled() -> None:
    integration.install()
    for name in NAMES:
        replaced = getattr(merge_utils, name)
        assert replaced is not OWN[name]
        assert getattr(lora_model, name) is replaced
    integration.uninstall()
    integration.uninstall()
    for name in NAMES:
        assert getattr(merge_utils, name) is OWN[name]
        assert getattr(lora_model, name) is OWN[name]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 0.25, 2.0), (0.5, -0.25, 1.0)])
@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.01, 0.2, 0.7, 1.0])
def test_as_peft_itself(weights: tuple[float, ...], sign: str, density: float) -> None:
    """In float64 PEFT's functions are the oracle; what is merged here in fp32 is near it."""
    given, w = tensors(), torch.tensor(weights)
    wide = [t.double() for t in given]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, extra in (
            ("task_arithmetic", ()),
            ("magnitude_prune", (density,)),
            ("ties", (density, sign)),
        ):
            merged = getattr(merge_utils, name)(given, w, *extra)
            expected = OWN[name](wide, w.double(), *extra)
            assert merged.dtype == torch.float32
            torch.testing.assert_close(merged.double(), expected, rtol=1e-6, atol=1e-6)
    counts = integration.counts()
    assert counts.merged["task_arithmetic"] == counts.merged["magnitude_prune"] == 1
    if sign == "frequency" and min(weights) < 0:
        reason = "signs counted where a weight is not positive"
        assert counts.left == {("ties", reason): 1}
    else:
        assert counts.merged["ties"] == 1 and not counts.left


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_the_result_has_pefts_dtype(name: str, weights: torch.dtype) -> None:
    """PEFT multiplies adapters by weights: bf16 by fp32 is fp32, which an SVD afterwards needs."""
    given, w = tensors(torch.bfloat16), torch.tensor([0.5, 0.25, 1.0], dtype=weights)
    extra = () if name == "task_arithmetic" else (0.5,)
    merged = getattr(merge_utils, name)(given, w, *extra)
    assert merged.dtype == OWN[name](given, w, *extra).dtype
    assert integration.counts().merged == {name: 1}


def with_adapters(adapters: str, modules: list[str], layers: int) -> Any:
    """A small Qwen2 with adapters of random numbers, each named by a letter."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    lora = LoraConfig(r=4, target_modules=modules, init_lora_weights=False)
    model = get_peft_model(Qwen2ForCausalLM(config), lora, adapter_name=adapters[0])
    for name in adapters[1:]:
        model.add_adapter(name, lora)
    return model


def test_a_lora_model_in_bf16_by_svd() -> None:
    model = with_adapters("ab", ["q_proj"], layers=1).bfloat16()
    with torch.no_grad():
        model.add_weighted_adapter(
            ["a", "b"], [1.0, 0.5], "both", combination_type="ties_svd", density=0.5
        )
    assert integration.counts().merged == {"ties": 1}


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_random_masks_are_torchs_to_repeat(name: str) -> None:
    given, w = tensors(), torch.ones(3)
    merge = getattr(merge_utils, name)
    torch.manual_seed(1)
    first = merge(given, w, 0.3)
    second = merge(given, w, 0.3)
    torch.manual_seed(1)
    assert torch.equal(merge(given, w, 0.3), first)
    assert not torch.equal(first, second)


def test_random_masks_keep_the_mean() -> None:
    """Of 400 merges of ones: a share of 0.3, divided by it, is 1 on the average."""
    ones = [torch.ones(50, 20)]
    torch.manual_seed(2)
    merges = [merge_utils.dare_linear(ones, torch.ones(1), 0.3) for _ in range(400)]
    mean = torch.stack(merges).mean().item()
    deviation = ((1 / 0.3 - 1) / (400 * 1000)) ** 0.5
    assert abs(mean - 1) < 5 * deviation
    values = torch.stack(merges).unique()
    assert values.tolist() == [0.0, pytest.approx(1 / 0.3)]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (lambda: [t.double() for t in tensors()], "float64"),
        (lambda: [t.requires_grad_() for t in tensors()], "gradients are recorded"),
        (lambda: [t.to("meta") for t in tensors()], "tensors on meta"),
    ],
)
def test_what_is_left_to_peft(given: Any, reason: str) -> None:
    given = given()
    w = torch.ones(3, dtype=given[0].dtype, device=given[0].device)
    merged = merge_utils.task_arithmetic(given, w)
    assert merged.dtype == given[0].dtype and merged.requires_grad == given[0].requires_grad
    assert integration.counts().left == {("task_arithmetic", reason): 1}


def test_mistakes_are_pefts() -> None:
    with pytest.raises(ValueError, match="density"):
        merge_utils.ties(tensors(), torch.ones(3), -0.5)


@pytest.mark.parametrize(
    "combination", ["linear", "magnitude_prune", "dare_linear", "ties", "dare_ties"]
)
def test_a_lora_model(combination: str) -> None:
    """add_weighted_adapter on a small Qwen2 with three adapters."""
    model = with_adapters("abc", ["q_proj", "v_proj"], layers=2)
    arguments = {} if combination == "linear" else {"density": 0.5}

    def add(name: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        model.add_weighted_adapter(
            list("abc"), [1.0, 0.5, 0.25], name, combination_type=combination, **arguments
        )
        state = model.state_dict()
        return {k.replace(name, ""): v.clone() for k, v in state.items() if f".{name}." in k}

    ours = add("ours")
    merged = integration.counts()
    assert sum(merged.merged.values()) == len(ours) == 8 and not merged.left
    again = add("again")
    assert all(torch.equal(ours[k], again[k]) for k in ours)
    if "dare" not in combination:
        integration.uninstall()
        theirs = add("theirs")
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-6)
    model.set_adapter("ours")
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
