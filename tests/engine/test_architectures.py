"""Slices and gradients of many architectures: the merged model computes what a model made by hand does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig

from fuseo1_kernels import merge_checkpoints
from fuseo1_kernels.plan.layer_traits import DERIVED, TO_STATE, traits
from support.architectures import ARCHITECTURES, OTHER_STACKS, Architecture

pytestmark = pytest.mark.peer


def _cases(cases: dict[str, Architecture], fast: str) -> list[Any]:
    """The cases; those of the fast run are named."""
    assert {*fast.split()} <= cases.keys()
    return [
        pytest.param(case, id=name, marks=() if name in fast.split() else pytest.mark.slow)
        for name, case in cases.items()
    ]


def save(case: Architecture, home: Path) -> dict[str, Any]:
    """Write two models and return them."""
    models = {name: case.model(seed) for seed, name in enumerate(("left", "right"))}
    for name, model in models.items():
        model.save_pretrained(home / name)
    return models


def load(like: Any, path: Path) -> Any:
    """The merged model; every weight came from its files, and the files hold no others."""
    model, said = type(like).from_pretrained(path, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not said[kind], (kind, said[kind])
    return model.eval()


def assert_same(case: Architecture, merged: Any, by_hand: Any, *others: Any) -> None:
    """The same logits as the model by hand; and logits that tell it from the `others`."""
    expected = case.logits(by_hand)
    assert expected.isfinite().all()
    for other in others:
        assert not torch.allclose(case.logits(other), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(case.logits(merged), expected, rtol=1e-4, atol=1e-4)


def _taken(model: Any, *modules: str) -> dict[str, torch.Tensor]:
    """The part of the state that belongs to `modules`, each of which has some."""
    state = model.state_dict()
    taken = {m: [n for n in state if n == m or n.startswith(f"{m}.")] for m in modules}
    assert all(taken.values())
    return {name: state[name] for names in taken.values() for name in names}


@pytest.mark.parametrize(
    "case", _cases(ARCHITECTURES | OTHER_STACKS, "gemma3 qwen3_moe qwen2_5_vl")
)
def test_slices(case: Architecture, tmp_path: Path) -> None:
    models = save(case, tmp_path)
    by_hand = type(models["left"])(case.config_of_slices(models["left"].config)).eval()
    outside = {
        name: tensor
        for name, tensor in models["left"].state_dict().items()
        if not name.startswith(f"{case.stack}.")
    } | _taken(models["right"], *case.after)
    by_hand.load_state_dict(outside, strict=False)
    layers = [(name, i) for name, first, end in case.picks for i in range(first, end)]
    made = by_hand.get_submodule(case.stack)
    assert len(made) == len(layers)
    for layer, (name, i) in zip(made, layers, strict=True):
        layer.load_state_dict(models[name].get_submodule(case.stack)[i].state_dict())

    sources = [{"model": str(tmp_path / n), "layer_range": [a, b]} for n, a, b in case.picks]
    config = {"merge_method": "passthrough", "slices": [{"sources": [s]} for s in sources]}
    if case.slices_of:
        config["slices_of"] = case.slices_of
    result = merge_checkpoints(config, tmp_path / "merged")
    assert not result.notes
    assert_same(case, load(by_hand, tmp_path / "merged"), by_hand, *models.values())


@pytest.mark.parametrize("case", _cases(ARCHITECTURES, "t5"))
def test_gradients(case: Architecture, tmp_path: Path) -> None:
    """Each stack goes by itself from the left model's first layer to the right one's last."""
    models = save(case, tmp_path)
    left, right = models["left"], models["right"]
    by_hand = type(left)(left.config).eval()
    by_hand.load_state_dict(left.state_dict())
    for stack in (case.stack, *case.others):
        _blend(*(m.get_submodule(stack) for m in (left, right, by_hand)))

    weights = {"left": [1.0, 0.0], "right": [0.0, 1.0]}
    listed = [
        {"model": str(tmp_path / name), "parameters": {"weight": weight}}
        for name, weight in weights.items()
    ]
    config = {"merge_method": "linear", "models": listed, "parameters": {"normalize": False}}
    result = merge_checkpoints(config, tmp_path / "merged")
    assert not result.notes
    assert_same(case, load(by_hand, tmp_path / "merged"), by_hand, left, right)


@pytest.mark.parametrize(
    ("cut", "heads"), [("decoder", [[1, 3], [2, 3], [3, 0]]), ("encoder", [[2, 3], [3, 0], [5, 1]])]
)
def test_whispers_alignment_heads_follow_the_decoders_layers(
    cut: str, heads: list[list[int]], tmp_path: Path
) -> None:
    model = ARCHITECTURES["whisper"].make()
    model.generation_config.alignment_heads = [[2, 3], [3, 0], [5, 1]]
    model.save_pretrained(tmp_path / "m")
    sources = [
        {"model": str(tmp_path / "m"), "layer_range": [*r]} for r in ((0, 1), (2, 3), (2, 4))
    ]
    slices = {"slices": [{"sources": [s]} for s in sources], "slices_of": f"model.{cut}.layers"}
    merge_checkpoints({"merge_method": "passthrough", **slices}, tmp_path / "merged")
    written = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert written["alignment_heads"] == heads


@pytest.mark.parametrize(("key", "model_type"), DERIVED)
def test_what_architectures_derive_from_a_layers_index(key: str, model_type: str) -> None:
    """A config.json that leaves a list out means what transformers makes of it."""
    config = AutoConfig.for_model(model_type, num_hidden_layers=13)
    section = {"model_type": model_type}
    trait = traits(section, 13)[key]
    assert trait.write(trait.values) == {key: getattr(config, key)}


# The layers' own tensors differ with these, which the merge sees.
_SEEN_IN_TENSORS = {"mlp_layer_types"}
# These follow from other lists that are gathered.
_FOLLOW = {
    ("layer_types", "llama4_text"),
    *(("per_layer_config", f"{kind}_text") for kind in ("gemma4", "gemma4_unified")),
    *(("per_layer_config", f"{kind}_text") for kind in ("diffusion_gemma", "embedding_gemma2")),
}


@pytest.mark.slow
def test_every_list_that_an_architecture_derives_is_known() -> None:
    """By a rule or as one that must be stated; those that are alike in all layers need neither."""
    found = set()
    for kind in CONFIG_MAPPING:
        try:
            config = CONFIG_MAPPING[kind](num_hidden_layers=13).to_dict()
        except Exception:  # it has stages, or a list of its own by default
            continue
        found |= {(key, kind) for key, value in config.items() if _by_layer(key, value)}
    known = DERIVED.keys() | {(key, kind) for key, kinds in TO_STATE.items() for kind in kinds}
    found = {(key, kind) for key, kind in found if key not in _SEEN_IN_TENSORS} - _FOLLOW
    assert found == known - {("moe_layers", "llama4_text")}


def _by_layer(key: str, value: Any) -> bool:
    """Whether a list has a value for each of 13 layers, not all alike and not their numbers."""
    if key == "per_layer_config":
        return bool(value)
    of_layers = isinstance(value, list) and len(value) == 13 and not key.startswith("conv_")
    return of_layers and value != [*range(13)] and any(each != value[0] for each in value)


@torch.no_grad()
def _blend(left: Sequence[Any], right: Sequence[Any], out: Sequence[Any]) -> None:
    for i, layer in enumerate(out):
        t = i / (len(out) - 1)
        ends = (left[i].parameters(), right[i].parameters())
        for parameter, a, b in zip(layer.parameters(), *ends, strict=True):
            parameter.copy_((1 - t) * a.double() + t * b.double())
