"""config.json of slices: what it says of layers is gathered by layer, and what it cannot say is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fuseo1_kernels.plan.layer_config import move_alignment_heads
from fuseo1_kernels.plan.plan import Plan
from support.headers import Models, tensors

NAMES = [f"model.layers.{i}.mlp.weight" for i in range(6)]
#: Output layers: 0 and 1, then 1 to 4.
PICKS = ((0, 2), (1, 5))
ABC = ["a", "b", "c", "d", "e", "f"]
FULL, SLIDING = "full_attention", "sliding_attention"


def plan(
    models: Models, config: dict[str, Any], *, names: list[str] = NAMES, picks: Any = PICKS
) -> Plan:
    models.add("m", tensors(dict.fromkeys(names, (2, 2))), **config)
    slices = [{"sources": [{"model": "m", "layer_range": [*pick]}]} for pick in picks]
    data = {"merge_method": "passthrough", "slices": slices, "base_model": "m"}
    return models.plan("m", **data)


GATHERED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "count": ({"num_hidden_layers": 6}, {"num_hidden_layers": 6}),
    "no count": ({"model_type": "x"}, {"model_type": "x", "num_hidden_layers": 6}),
    "n_layer": ({"n_layer": 6}, {"n_layer": 6}),
    "list": ({"layer_types": ABC}, {"layer_types": ["a", "b", "b", "c", "d", "e"]}),
    "pattern as text": (
        {"hybrid_override_pattern": "M-M*M-"},
        {"hybrid_override_pattern": "M--M*M"},
    ),
    "pattern that repeats": (
        {"block_types": ["r", "r", "a"]},
        {"block_types": ["r", "r", "r", "a", "r", "r"]},
    ),
    "indices": ({"full_attn_idxs": [1, 4]}, {"full_attn_idxs": [1, 2, 5]}),
    "indices, as many as layers": (
        {"moe_layers": [0, 1, 2, 3, 4, 5]},
        {"moe_layers": [0, 1, 2, 3, 4, 5]},
    ),
    "by index": (
        {"per_layer_config": {"1": {"x": 1}, "3": {"x": 2}}},
        {"per_layer_config": {"1": {"x": 1}, "2": {"x": 1}, "4": {"x": 2}}},
    ),
    "by index with zeros": (
        {"per_layer_config": {"01": {"x": 1}, "03": {"x": 2}, "x": {}}},
        {"per_layer_config": {"1": {"x": 1}, "2": {"x": 1}, "4": {"x": 2}}},
    ),
    "keys of its own": (
        {"kv_source_layers": [0, 1, 2, 3, 4, 5]},
        {"kv_source_layers": [0, 1, 2, 3, 4, 5]},
    ),
    "threshold": ({"first_k_dense_replace": 2}, {"first_k_dense_replace": 3}),
    "first and last": (
        {"moe_layer_start_index": 1, "moe_layer_end_index": 4},
        {"moe_layer_start_index": 1, "moe_layer_end_index": 5},
    ),
    "threshold behind the end": ({"num_dense_layers": 9}, {"num_dense_layers": 9}),
    "window threshold": (
        {"max_window_layers": 3, "use_sliding_window": True},
        {"max_window_layers": 4, "use_sliding_window": True},
    ),
    "dense layers of a step": (
        {"mlp_only_layers": [3], "decoder_sparse_step": 2},
        {"mlp_only_layers": [0, 3, 4, 5], "decoder_sparse_step": 1},
    ),
    "GPT-Neo": (
        {"num_layers": 6, "attention_types": [[["g", "l"], 3]], "attention_layers": list("glglgl")},
        {
            "num_layers": 6,
            "attention_types": [[list("gllglg"), 1]],
            "attention_layers": list("gllglg"),
        },
    ),
    "what Gemma 3 leaves out": (
        {"model_type": "gemma3_text", "sliding_window_pattern": 3},
        {
            "model_type": "gemma3_text",
            "sliding_window_pattern": 3,
            "layer_types": [SLIDING, SLIDING, SLIDING, FULL, SLIDING, SLIDING],
        },
    ),
    "what Llama 4 leaves out": (
        {"model_type": "llama4_text", "no_rope_layers": [], "interleave_moe_layer_step": 2},
        {
            "model_type": "llama4_text",
            "no_rope_layers": [1, 1, 1, 1, 0, 1],
            "interleave_moe_layer_step": 2,
            "moe_layers": [1, 2, 4],
        },
    ),
    "not of layers": (
        {"eos_token_id": [1, 2, 3, 4, 5, 6], "sliding_window": 4, "other": [1, 2]},
        {"eos_token_id": [1, 2, 3, 4, 5, 6], "sliding_window": 4, "other": [1, 2]},
    ),
    "nested": (
        {"text_config": {"num_hidden_layers": 6, "layer_types": ABC}, "layer_types": ABC},
        {
            "text_config": {"num_hidden_layers": 6, "layer_types": ["a", "b", "b", "c", "d", "e"]},
            "layer_types": ABC,
        },
    ),
    "nested and copied": (
        {"text_config": {"num_hidden_layers": 6}, "num_hidden_layers": 6, "layer_types": ABC},
        {
            "text_config": {"num_hidden_layers": 6},
            "num_hidden_layers": 6,
            "layer_types": ["a", "b", "b", "c", "d", "e"],
        },
    ),
    "of a wrong type": (
        {"layer_types": 5, "mlp_only_layers": {}, "first_k_dense_replace": "x", "text_config": 1}
        | {"attention_types": [[["g"], 10**15], 7], "decoder_sparse_step": 0, "moe_layers": ["x"]},
        {"layer_types": 5, "mlp_only_layers": {}, "first_k_dense_replace": "x", "text_config": 1}
        | {"attention_types": [[["g"], 10**15], 7], "decoder_sparse_step": 0, "moe_layers": ["x"]},
    ),
}


@pytest.mark.parametrize("case", GATHERED)
def test_what_config_json_says_of_layers_is_gathered_by_layer(case: str, models: Models) -> None:
    config, expected = GATHERED[case]
    if not {"num_layers", "n_layer", "text_config"} & config.keys() or case == "of a wrong type":
        expected = {"num_hidden_layers": 6} | expected
    made = plan(models, config)
    assert made.problems == made.notes == ()
    assert made.config == expected
    # Slices that change nothing leave everything as it is.
    whole = plan(models, config, picks=((0, 2), (2, 6)))
    assert whole.problems == ()
    assert (
        whole.config
        == ({"num_hidden_layers": 6} if "num_hidden_layers" in expected else {}) | config
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "first layers, not the first": ({"first_k_dense_replace": 1}, "first_k_dense_replace: "),
    "windows, not the last": (
        {"max_window_layers": 2, "use_sliding_window": True},
        "max_window_layers: ",
    ),
    "tapped": ({"deepstack_visual_indexes": [1, 5]}, "deepstack_visual_indexes: "),
    "tapped, by another name": (
        {"intermediate_layers_indices": [2]},
        "intermediate_layers_indices: ",
    ),
    "keys of another layer": ({"kv_source_layers": [0, 0, 2, 3, 4, 5]}, "kv_source_layers: "),
    "earlier keys": ({"num_kv_shared_layers": 2}, "num_kv_shared_layers: "),
    "stages": ({"depths": [2, 2, 2]}, "depths: "),
    "period": ({"attn_layer_period": 3}, "attn_layer_period (3) goes by"),
    "period as text": ({"sliding_window_pattern": "LLG"}, "sliding_window_pattern ('LLG') "),
    "derived by a rule that is not known": (
        {"model_type": "olmo_hybrid"},
        "layer_types: state it; the architecture (olmo_hybrid) derives it from the layer's index",
    ),
    "Gemma 4's last layer": (
        {"model_type": "gemma4_text", "layer_types": [SLIDING] * 5 + [FULL]},
        "layer_types: the last layer must be one of full attention",
    ),
    "scaled by the index": (
        {"scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx (True) ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_config_json_cannot_say_is_refused(case: str, models: Models) -> None:
    config, problem = REFUSED[case]
    picks = ((0, 2), (3, 5), (0, 1))
    [said] = plan(models, config, picks=picks).problems
    assert said.startswith(f"model m: config.json cannot follow the slices: {problem}")
    if case != "stages":
        assert plan(models, config, picks=((0, 2), (2, 6))).problems == ()


def test_a_list_says_more_than_a_threshold_or_a_period(models: Models) -> None:
    config = {"layer_types": ABC, "sliding_window_pattern": 3, "max_window_layers": 2}
    made = plan(models, config | {"use_sliding_window": True}, picks=((4, 6), (0, 1)))
    assert made.problems == ()
    assert made.config["layer_types"] == ["e", "f", "a"]


def test_indices_have_zeros_as_transformers_writes_them(models: Models) -> None:
    config = {"per_layer_config": {"0": {"x": 1}, "5": {"x": 2}}}
    made = plan(models, config, picks=((0, 6), (0, 6)))
    assert [*made.config["per_layer_config"]] == ["00", "05", "06", "11"]


def test_fewer_layers(models: Models) -> None:
    config = {
        "num_kv_shared_layers": 5,
        "first_k_dense_replace": 4,
        "moe_layers": [1, 5],
        "layer_types": ABC,
    }
    stages = {"out_indices": [6], "out_features": ["stage6"], "stage_names": ["stem", *ABC]}
    made = plan(models, config | stages, picks=[(0, 2)])
    assert made.problems == ()
    assert made.config == {
        "num_hidden_layers": 2,
        "num_kv_shared_layers": 1,
        "first_k_dense_replace": 4,
        "moe_layers": [1],
        "layer_types": ["a", "b"],
        "out_indices": [2],
        "out_features": ["stage2"],
        "stage_names": ["stem", "stage1", "stage2"],
    }


@pytest.mark.parametrize("picks", [[(2, 4)], [(0, 2), (0, 2)]])
def test_layers_whose_tensors_differ_for_no_stated_reason(picks: Any, models: Models) -> None:
    """Only layer 0 of ModernBERT has no first norm, and only T5's has the bias of positions."""
    names = [*NAMES, "model.layers.0.relative_attention_bias.weight"]
    config = {"num_hidden_layers": 6}
    [said] = plan(models, config, names=names, picks=picks).problems
    assert "hold different tensors, and it does not say which do: layer " in said
    assert plan(models, config, names=names, picks=[(0, 2), (4, 6)]).problems == ()
    # A list that tells them apart is a reason.
    listed = {"layer_types": ["x", "y", "y", "y", "y", "y"]}
    assert plan(models, listed, names=names, picks=picks).problems == ()


def test_layers_of_several_models_bring_what_their_own_config_says(models: Models) -> None:
    for name, types in (("m", ABC), ("other", [t.upper() for t in ABC]), ("silent", None)):
        config = {"layer_types": types} if types else {}
        models.add(name, tensors(dict.fromkeys(NAMES, (2, 2))), num_hidden_layers=6, **config)
    sources = [("m", 0, 1), ("other", 3, 5), ("silent", 5, 6)]
    slices = [{"sources": [{"model": m, "layer_range": [a, b]}]} for m, a, b in sources]
    made = models.plan("m", merge_method="passthrough", slices=slices, base_model="m")
    assert made.config == {"num_hidden_layers": 4, "layer_types": ["a", "D", "E", "f"]}
    longer = [*NAMES, "model.layers.6.mlp.weight"]
    models.add("silent", tensors(dict.fromkeys(longer, (2, 2))), num_hidden_layers=7)
    slices[2]["sources"][0]["layer_range"] = [6, 7]
    [said] = models.plan("m", merge_method="passthrough", slices=slices, base_model="m").problems
    assert "layer_types: config.json of another model does not say it of all its layers" in said


def test_layers_of_different_kinds_merged_are_noted(models: Models) -> None:
    for name in ("m", "other"):
        models.add(name, tensors(dict.fromkeys(NAMES, (2, 2))), layer_types=list("aabbaa"))

    def notes(first: int) -> tuple[str, ...]:
        sources = [
            {"model": "m", "layer_range": [0, 3]},
            {"model": "other", "layer_range": [first, first + 3]},
        ]
        made = models.plan("m", slices=[{"sources": sources}])
        assert made.problems == ()
        assert made.config["layer_types"] == ["a", "a", "b"]
        return made.notes

    assert notes(0) == ()
    assert notes(1) == (
        "slices[0]: layer_types of layer 2 of model other is not that of layer 1 of model m; config.json has the "
        "latter",
    )


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({"num_layers": 3}, {"num_layers": 2, "num_decoder_layers": 3}),
        ({"num_layers": 3, "num_decoder_layers": 4}, {"num_layers": 2, "num_decoder_layers": 4}),
        ({"encoder_layers": 3, "num_hidden_layers": 3, "decoder_layers": 3}, None),
    ],
)
def test_the_encoder_of_a_pair(
    config: dict[str, Any], changed: dict[str, Any] | None, models: Models
) -> None:
    names = [f"{side}.block.{i}.w" for side in ("encoder", "decoder") for i in range(3)]
    models.add("m", tensors(dict.fromkeys(names, (2, 2))), is_encoder_decoder=True, **config)
    slices = [{"sources": [{"model": "m", "layer_range": [0, 2]}]}]
    keys = {"merge_method": "passthrough", "slices": slices, "slices_of": "encoder.block"}
    made = models.plan("m", **keys)
    expected = changed or {"encoder_layers": 2, "num_hidden_layers": 2, "decoder_layers": 3}
    assert made.config == {"is_encoder_decoder": True, **expected}


def test_a_tower_that_config_json_does_not_describe(models: Models) -> None:
    names = [f"{stack}.{i}.w" for stack in ("visual.blocks", "model.layers") for i in range(3)]
    models.add("m", tensors(dict.fromkeys(names, (2, 2))), num_hidden_layers=3)
    slices = [{"sources": [{"model": "m", "layer_range": [0, 2]}]}]
    keys = {"merge_method": "passthrough", "slices": slices}
    [said] = models.plan("m", **keys, slices_of="visual.blocks").problems
    assert said.endswith(": it does not tell how many layers visual.blocks has")
    assert models.plan("m", **keys).config == {"num_hidden_layers": 2}


@pytest.mark.parametrize("heads", [None, 3, "x", [[0]], [0, 1]])
def test_alignment_heads_that_are_none_stay(heads: Any) -> None:
    """tests/engine/test_architectures.py has those that move."""
    files = {"generation_config.json": json.dumps({"alignment_heads": heads}).encode()}
    before = dict(files)
    move_alignment_heads(files, [0, 1, 1])
    move_alignment_heads({}, [0])
    assert files == before
