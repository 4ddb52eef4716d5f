"""Stacks of layers: how they are found, which one slices cut, and what stands before and after it."""

from __future__ import annotations

from typing import Any

import pytest

from fuseo1_kernels.methods.sce import Sce
from fuseo1_kernels.plan.plan import Plan
from support.headers import Models, inputs, tensors


def stack(container: str, layers: int, *after: str) -> list[str]:
    return [f"{container}.{i}.{a}" for i in range(layers) for a in after or ("mlp.weight",)]


BERT = stack("bert.encoder.layer", 3, "attention.self.query.weight")
VIT = stack("vit.encoder.layer", 2)
GPT2 = stack("h", 3)
T5 = [
    *stack(
        "encoder.block", 2, "layer.0.SelfAttention.q.weight", "layer.1.DenseReluDense.wi.weight"
    ),
    *stack("decoder.block", 3, "layer.2.DenseReluDense.wi.weight"),
]
WHISPER = [*stack("model.encoder.layers", 2), *stack("model.decoder.layers", 4)]
VLM = [*stack("model.visual.blocks", 4), *stack("model.language_model.layers", 3)]
QWEN_VL = [*stack("visual.blocks", 4), *stack("model.layers", 3)]
CLIP = [*stack("vision_model.encoder.layers", 2), *stack("text_model.encoder.layers", 3)]
MTP = [*stack("model.layers", 3, "mlp.experts.7.up_proj.weight"), *stack("mtp.layers", 2)]


def add(models: Models, names: list[str], *outside: str, **config: Any) -> None:
    for model in ("base", "left"):
        models.add(model, tensors(dict.fromkeys([*outside, *names], (2, 2))), **config)


def topk(plan: Plan) -> dict[str, float]:
    assert not plan.problems
    return {j.name: j.rule.select_topk for j in plan.jobs if isinstance(j.rule, Sce)}


# --- gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "containers"),
    [
        (BERT, "bert.encoder.layer"),
        (VIT, "vit.encoder.layer"),
        (GPT2, "h"),
        (T5, "encoder.block decoder.block"),
        (WHISPER, "model.encoder.layers model.decoder.layers"),
        (VLM, "model.visual.blocks model.language_model.layers"),
        (QWEN_VL, "visual.blocks model.layers"),
        (MTP, "model.layers mtp.layers"),
    ],
)
def test_a_gradient_runs_over_each_stack_by_itself(
    names: list[str], containers: str, models: Models
) -> None:
    add(models, names, "embed_tokens.weight", "visual.merger.mlp.0.weight", "model.layers.00.w")
    found = topk(models.plan("base left", parameters={"select_topk": [0.0, 1.0]}))
    for container in containers.split():
        layers = [name for name in names if name.startswith(f"{container}.")]
        places = {name: int(name.removeprefix(f"{container}.").split(".")[0]) for name in layers}
        last = max(places.values())
        expected = {name: place / last for name, place in places.items()}
        assert {name: found.pop(name) for name in layers} == expected
    assert found and {*found.values()} == {0.0}


def test_layers_beyond_those_that_the_config_counts_lie_at_the_end(models: Models) -> None:
    """DeepSeek-V3's layer 61 of 61 predicts the token after the next."""
    add(models, stack("model.layers", 4), num_hidden_layers=3)
    found = topk(models.plan("base left", parameters={"select_topk": [0.0, 1.0]}))
    assert [*found.values()] == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("names", "setting", "note"),
    [
        (["transformer.attentions.0.w"], [0.0, 1.0], "; its first value holds"),
        (BERT, [0.0, 1.0], None),
        (["transformer.attentions.0.w"], [0.5], None),
        (BERT, [{"filter": "query", "value": [0.0, 1.0]}], None),
        (BERT, [{"filter": "norm", "value": [0.0, 1.0]}], " among the tensors of filter 'norm'"),
        (BERT, [{"filter": "encoder", "value": 0.0}, {"value": [0.0, 1.0]}], "; its first"),
    ],
)
def test_a_gradient_without_layers_is_noted(
    names: list[str], setting: Any, note: str | None, models: Models
) -> None:
    add(models, names, "norm.weight")
    notes = models.plan("base left", parameters={"select_topk": setting}).notes
    if note is None:
        assert notes == ()
    else:
        [said] = notes
        assert said.startswith("select_topk: the gradient finds no layers") and note in said


# --- slices --------------------------------------------------------------------------------


def sliced(models: Models, *picks: tuple[str, int, int], **keys: Any) -> Plan:
    sources = [[{"model": model, "layer_range": [a, b]}] for model, a, b in picks]
    slices = [{"sources": each} for each in sources]
    return models.plan("base", merge_method="passthrough", slices=slices, **keys)


@pytest.mark.parametrize(
    ("names", "asked", "cut"),
    [
        (BERT, None, "bert.encoder.layer"),
        (VIT, None, "vit.encoder.layer"),
        (GPT2, None, "h"),
        (VLM, None, "model.language_model.layers"),
        (QWEN_VL, None, "model.layers"),
        (QWEN_VL, "visual.blocks", "visual.blocks"),
        (CLIP, None, "text_model.encoder.layers"),
        (MTP, None, "model.layers"),
        (T5, "decoder.block", "decoder.block"),
        (T5, "encoder.block.", "encoder.block"),
    ],
)
def test_slices_cut_one_stack_and_leave_the_others_whole(
    names: list[str], asked: str | None, cut: str, models: Models
) -> None:
    add(models, names)
    keys = {} if asked is None else {"slices_of": asked}
    plan = sliced(models, ("base", 1, 2), ("base", 0, 2), **keys)
    assert not plan.problems
    taken = {job.name: inputs(job)[0][1] for job in plan.jobs}
    for name in names:
        if not name.startswith(f"{cut}."):
            assert taken.pop(name) == name
    for out, layer in enumerate((1, 0, 1)):
        for name in [name for name in names if name.startswith(f"{cut}.{layer}.")]:
            after = name.removeprefix(f"{cut}.{layer}.")
            assert taken.pop(f"{cut}.{out}.{after}") == name
    assert not taken


@pytest.mark.parametrize(
    ("names", "asked", "problem"),
    [
        (
            T5,
            None,
            "model base has several stacks of layers: encoder.block (2 layers), decoder.block (3 layers); "
            "say with `slices_of:` which one `slices` cut",
        ),
        (
            WHISPER,
            None,
            "model base has several stacks of layers: model.encoder.layers (2 layers), ",
        ),
        (
            VLM,
            "model.layers",
            "slices_of: model base has no layers model.layers.0, .1, ...; it has ",
        ),
        (["w"], None, "model base: `slices` need layers, and none of its tensors' names shows one"),
        ([*stack("h", 1), "h.2000000.w"], None, "model base: 2000001 layers; at most 10000 are"),
    ],
)
def test_slices_that_do_not_say_of_what(
    names: list[str], asked: str | None, problem: str, models: Models
) -> None:
    add(models, names)
    keys = {} if asked is None else {"slices_of": asked}
    [said] = sliced(models, ("base", 0, 1), **keys).problems
    assert said.startswith(problem)


def test_a_model_without_the_layers_of_the_first(models: Models) -> None:
    models.add("base", tensors(dict.fromkeys(QWEN_VL, (2, 2))))
    models.add("left", tensors(dict.fromkeys(VLM, (2, 2))))
    [problem] = sliced(models, ("base", 0, 1), ("left", 0, 1)).problems
    assert problem.startswith("model left: has no layers model.layers.0, .1, ...")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.embed_tokens_per_layer.weight", (7, 4 * 32)),
        ("model.per_layer_model_projection.weight", (4 * 32, 8)),
        ("layer_weights", (5,)),
    ],
)
def test_tensors_with_a_part_for_each_layer_are_not_sliced(
    name: str, shape: tuple[int, ...], models: Models
) -> None:
    shapes = dict.fromkeys(stack("model.layers", 4), (2, 2)) | {name: shape}
    models.add("base", tensors(shapes), num_hidden_layers=4)
    for picks in ([("base", 0, 2)], [("base", 2, 4), ("base", 0, 2)]):
        [problem] = sliced(models, *picks).problems
        assert problem.startswith(f"model base: tensor {name} holds a part for each layer of ")
    assert sliced(models, ("base", 0, 2), ("base", 2, 4)).problems == ()
    # A projection inside of a layer is the layer's own, and a tower's tensor is no part of the language model.
    names = [*stack("model.layers", 4, "per_layer_projection.weight"), "audio_tower.layer_weights"]
    models.add("base", tensors(dict.fromkeys(names, shape)), num_hidden_layers=4)
    assert sliced(models, ("base", 0, 1), ("base", 3, 4)).problems == ()


_BEFORE = {
    "model.layers": (
        "model.embed_tokens.weight gpt_neox.embed_in.weight transformer.wte.weight wpe.weight shared.weight "
        "word_embeddings_layernorm.weight model.decoder.project_in.weight rwkv.emb.weight visual.patch_embed.w "
        "multi_modal_projector.linear_1.weight vision_tower.head.probe model.embed_vision.norm.weight "
        "bert.embeddings.LayerNorm.weight audio_tower.conv1.weight electra.embeddings_project.weight "
        "model.altup_projections.0.weight token_embed_norm.weight input_norm.weight model.embed_norm.weight"
    ),
    "encoder.block": "shared.weight encoder.embed_tokens.weight",
    "decoder.block": "shared.weight encoder.final_layer_norm.weight decoder.embed_tokens.weight",
    "visual.blocks": "visual.patch_embed.proj.weight visual.ln_pre.weight visual.pre_layernorm.bias",
}
_AFTER = {
    "model.layers": (
        "model.norm.weight lm_head.weight embed_out.weight model.embedding_norm.weight score.weight "
        "model.decoder.project_out.weight cls.predictions.bias final_logits_bias mtp.fc.weight mtp.norm.weight "
        "output_embeddings.weight transformer.ln_f.bias pooler.dense.weight "
        "model.altup_unembed_projections.0.weight"
    ),
    "encoder.block": "encoder.final_layer_norm.weight decoder.final_layer_norm.weight lm_head.weight",
    "decoder.block": "decoder.final_layer_norm.weight lm_head.weight",
    "visual.blocks": "model.embed_tokens.weight visual.merger.ln_q.weight model.norm.weight lm_head.weight",
}
_STACKS = {"model.layers": MTP, "encoder.block": T5, "decoder.block": T5, "visual.blocks": QWEN_VL}


@pytest.mark.parametrize("cut", _STACKS)
def test_what_stands_before_comes_from_the_first_slice_and_the_rest_from_the_last(
    cut: str, models: Models
) -> None:
    before, after = _BEFORE[cut].split(), _AFTER[cut].split()
    add(models, _STACKS[cut], *before, *after)
    plan = sliced(models, ("base", 0, 1), ("left", 1, 2), slices_of=cut)
    assert not plan.problems
    origin = {job.name: inputs(job)[0][0] for job in plan.jobs}
    assert {name: origin[name] for name in before} == dict.fromkeys(before, "base")
    assert {name: origin[name] for name in after} == dict.fromkeys(after, "left")


def test_layers_that_predict_further_tokens_follow_the_last_one(models: Models) -> None:
    config = {"num_hidden_layers": 3, "num_nextn_predict_layers": 1}
    add(models, stack("model.layers", 4), **config)
    plan = sliced(models, ("base", 0, 1), ("left", 2, 3))
    assert [(job.name, *inputs(job)) for job in plan.jobs] == [
        ("model.layers.0.mlp.weight", ("base", "model.layers.0.mlp.weight")),
        ("model.layers.1.mlp.weight", ("left", "model.layers.2.mlp.weight")),
        ("model.layers.2.mlp.weight", ("left", "model.layers.3.mlp.weight")),
    ]
    assert plan.config == config | {"num_hidden_layers": 2}
