"""Modules: which tensors belong to which, and what several of them make of a model."""

from __future__ import annotations

from typing import Any

import pytest

from fuseo1_kernels.methods.sce import Sce
from fuseo1_kernels.plan.modules import owner_among
from fuseo1_kernels.plan.plan import Plan
from support.headers import Models, inputs, layered, tensors

VLM = [
    "model.language_model.embed_tokens.weight",
    *(f"model.language_model.layers.{i}.mlp.up_proj.weight" for i in range(3)),
    "model.language_model.norm.weight",
    *(f"model.visual.blocks.{i}.mlp.fc1.weight" for i in range(4)),
    "model.visual.merger.mlp.0.weight",
    "lm_head.weight",
]
TEXT, VISION, PROJECTOR = "text_decoder", "vision_tower", "multi_modal_projector"
CONFIG = {"text_config": {"num_hidden_layers": 3}, "vision_config": {"depth": 4}}


def vlms(models: Models) -> None:
    for name in ("base", "left"):
        models.add(name, tensors(dict.fromkeys(VLM, (2, 2))), **CONFIG)


def listed(*names: str, **parameters: Any) -> dict[str, Any]:
    return {"models": [{"model": name} for name in names], "parameters": parameters}


def cut(*ranges: tuple[int, int], **parameters: Any) -> dict[str, Any]:
    def sources(layers: tuple[int, int]) -> list[dict[str, Any]]:
        return [{"model": name, "layer_range": [*layers]} for name in ("left", "base")]

    return {"slices": [{"sources": sources(r)} for r in ranges], "parameters": parameters}


def jobs(plan: Plan) -> list[Any]:
    assert not plan.problems
    return [(job.name, repr(job.rule), inputs(job)) for job in plan.jobs]


@pytest.mark.parametrize(
    ("keys", "module"),
    [
        ({}, listed("left")),
        ({"slices": cut((0, 2), (1, 3))["slices"]}, cut((0, 2), (1, 3))),
        ({"parameters": {"select_topk": [0.0, 1.0]}}, listed("left", select_topk=[0.0, 1.0])),
    ],
)
def test_default_alone_is_the_whole_model(
    keys: dict[str, Any], module: dict[str, Any], models: Models
) -> None:
    for name in ("base", "left"):
        models.add(name, tensors(layered(3)), num_hidden_layers=3)
    plan = models.plan("base left", modules={"default": module})
    expected = models.plan("base left", **keys)
    assert jobs(plan) == jobs(expected)
    assert plan.config == expected.config and plan.notes == expected.notes == ()


def test_a_modules_parameters_lie_between_its_slices_and_those_of_all(models: Models) -> None:
    for name in ("base", "left"):
        models.add(name, tensors(layered(2)), num_hidden_layers=2)
    module = cut((0, 1), (1, 2), select_topk=[{"filter": "mlp", "value": 0.5}], variant="mergekit")
    module["slices"][1]["parameters"] = {"select_topk": 0.25}
    plan = models.plan(
        "base left",
        modules={"default": module},
        parameters={"select_topk": 0.75, "variant": "fuseo1"},
    )
    found = {}
    for job in plan.jobs:
        assert isinstance(job.rule, Sce) and job.rule.variant == "mergekit"
        found[job.name] = job.rule.select_topk
    assert [found[f"model.layers.{i}.mlp.up_proj.weight"] for i in (0, 1)] == [0.5, 0.25]
    assert [found[f"model.layers.{i}.self_attn.q_proj.weight"] for i in (0, 1)] == [0.75, 0.25]


@pytest.mark.parametrize(
    "names",
    [
        (TEXT, VISION, PROJECTOR),
        ("model.language_model", "model.visual", "default"),
        ("model.visual.merger", "model.visual", "default"),
        ("default", "vision_model", PROJECTOR),
    ],
)
def test_several_whole_modules_make_the_whole_model(names: tuple[str, ...], models: Models) -> None:
    vlms(models)
    whole = models.plan("base left", parameters={"select_topk": [0.0, 1.0]})
    plan = models.plan(
        "base left", modules={n: listed("left", select_topk=[0.0, 1.0]) for n in names}
    )
    assert sorted(jobs(plan)) == sorted(jobs(whole))
    assert plan.config == whole.config


def test_as_mergekit_writes_whole_models_of_several_modules(models: Models) -> None:
    vlms(models)
    modules = {TEXT: cut((0, 3)), VISION: cut((0, 4)), PROJECTOR: cut((0, 2))}
    plan = models.plan("base left", modules=modules)
    assert sorted(jobs(plan)) == sorted(jobs(models.plan("base left")))
    modules[PROJECTOR] = cut((0, 0))
    assert jobs(models.plan("base left", modules=modules)) == jobs(plan)


def test_modules_are_cut_by_themselves(models: Models) -> None:
    vlms(models)
    modules = {
        TEXT: cut((0, 2), (1, 3), select_topk=0.5),
        "model.visual": cut((2, 4), select_topk=0.25),
    }
    plan = models.plan("base left", modules=modules)
    assert not plan.problems
    found = {}
    for job in plan.jobs:
        assert isinstance(job.rule, Sce)
        found[job.name] = (inputs(job)[1][1], job.rule.select_topk)
    text, vision = "model.language_model.layers", "model.visual.blocks"
    picks = {f"{text}.{i}": f"{text}.{j}" for i, j in enumerate((0, 1, 1, 2))}
    picks |= {f"{vision}.{i}": f"{vision}.{j}" for i, j in enumerate((2, 3))}
    for name, (source, topk) in found.items():
        place, dot, after = name.partition(".mlp.")
        assert source == (picks.pop(place) + dot + after if place in picks else name)
        assert topk == (0.25 if "visual" in name else 0.5)
    assert not picks
    assert plan.config == {"text_config": {"num_hidden_layers": 4}, "vision_config": {"depth": 2}}


@pytest.mark.parametrize(
    ("modules", "problem"),
    [
        ({TEXT: listed("left")}, "no entry of `modules` (text_decoder) has model.visual.blocks.0"),
        ({TEXT: listed("left"), "encoder": listed("left")}, "(text_decoder, encoder) has model.v"),
        (
            {"default": listed("left"), "model.vision": listed("left")},
            "modules.model.vision: model base has no such tensors; a module is called by",
        ),
        ({"default": cut((0, 3)), VISION: cut((0, 0))}, "layer_range: [0, 0] has no layers"),
        ({"default": cut((0, 3)), VISION: cut((0, 5))}, "ends at 5, but it has 4 layers"),
    ],
)
def test_module_mistakes(modules: dict[str, Any], problem: str, models: Models) -> None:
    vlms(models)
    plan = models.plan("base left", modules=modules)
    assert [problem in line for line in plan.problems].count(True) >= 1, plan.problems


def test_owners() -> None:
    owner = owner_among(["decoder", "encoder", "shared"])
    names = {
        "encoder.block.0.layer.0.layer_norm.weight": "encoder",
        "decoder.final_layer_norm.weight": "decoder",
        "shared.weight": "shared",
        "lm_head.weight": "shared",
    }
    assert {name: owner(name) for name in names} == names
    assert owner_among(["a"])("ab.weight") is None
    assert owner_among(["a.", "a.b"])("a.b") == "a.b"
    # A layer's tensors stay together, whatever their own names say.
    owner = owner_among([VISION, PROJECTOR])
    assert owner("visual.blocks.0.merger.weight") == owner("visual.blocks.0.x.weight") == VISION


# --- slices with a base each -----------------------------------------------------------------


def test_slices_with_a_base_each_need_none_at_the_top(models: Models) -> None:
    for name in ("base", "left", "right"):
        models.add(name, tensors(layered(4)), num_hidden_layers=4)

    def part(base: str, *layers: int) -> dict[str, Any]:
        sources = [{"model": n, "layer_range": [*layers]} for n in ("left", "right")]
        return {"sources": sources, "base_model": base}

    plan = models.plan("base", slices=[part("left", 0, 2), part("right", 2, 4)], base_model=None)
    first = {job.name: inputs(job)[0][0] for job in plan.jobs}
    assert not plan.problems
    assert {first[f"model.layers.{i}.mlp.up_proj.weight"] for i in (0, 1)} == {"left"}
    assert {first[f"model.layers.{i}.mlp.up_proj.weight"] for i in (2, 3)} == {"right"}
    assert (first["model.embed_tokens.weight"], first["lm_head.weight"]) == ("left", "right")
