"""From a config and headers to what is to be done: names, order, parameters, shapes, problems."""

from __future__ import annotations

from typing import Any

import pytest

from fuseo1_kernels.methods.sce import Sce
from fuseo1_kernels.plan.job import Job
from fuseo1_kernels.plan.plan import Plan
from support.headers import Models, inputs, layered, only, tensors

# --- notes ---------------------------------------------------------------------------------


def test_a_filter_that_matches_no_tensor_is_noted(models: Models) -> None:
    for name in ("base", "left"):
        models.add(name, tensors(layered(2)))

    def notes(*filters: str | None, **keys: Any) -> tuple[str, ...]:
        topk = [{"filter": f, "value": 0.5} if f else {"value": 0.5} for f in filters]
        plan = models.plan("base left", parameters={"select_topk": topk}, **keys)
        assert not plan.problems
        return plan.notes

    assert notes("mpl") == ("select_topk: filter 'mpl' matches no tensor",)
    assert notes("mpl", "mlp", "mpl", "norms", "*", None) == (
        "select_topk: filter 'mpl' matches no tensor",
        "select_topk: filter 'norms' matches no tensor",
    )
    assert notes("mlp") == notes("*") == notes(None) == ()


def test_a_filter_of_a_slice_is_compared_with_the_slices_tensors(models: Models) -> None:
    for name in ("base", "left"):
        models.add(name, tensors(layered(2)), num_hidden_layers=2)

    def part(first: int, pattern: str) -> dict[str, Any]:
        sources = [{"model": m, "layer_range": [first, first + 1]} for m in ("base", "left")]
        topk = [{"filter": pattern, "value": 0.5}]
        return {"sources": sources, "parameters": {"select_topk": topk}}

    plan = models.plan("base left", slices=[part(0, "embed_tokens"), part(1, "embed_tokens")])
    assert plan.notes == (
        "slices[1].parameters.select_topk: filter 'embed_tokens' matches no tensor",
    )


# --- whole models ------------------------------------------------------------------------


def test_every_tensor_of_the_base_in_its_order_and_models_in_the_configs(models: Models) -> None:
    for name in ("base", "left", "right"):
        models.add(name, tensors(layered(2)))
    plan = models.plan("base right left")
    assert [job.name for job in plan.jobs] == list(layered(2))
    for job in plan.jobs:
        assert inputs(job) == [("base", job.name), ("right", job.name), ("left", job.name)]
        assert job.shape == layered(2)[job.name]
        assert (sce(job).select_topk, sce(job).variant) == (1.0, "fuseo1")
    assert (plan.config, plan.vocab_size) == ({}, None)
    assert plan.problems == plan.notes == ()
    elements = 2 * 10 * 4 + 2 * (16 + 32) + 4
    assert plan.input_bytes == 3 * 2 * elements
    assert plan.output_bytes - len(plan.shards[0].header) == 2 * elements
    assert plan.dtype_name == "bfloat16"


def test_the_base_comes_first_wherever_it_is_listed(models: Models) -> None:
    for name in ("base", "left", "right"):
        models.add(name, tensors({"w": (4,)}))
    listed = [{"model": name} for name in ("left", "base", "right")]
    job = only(models.plan("base", models=listed))
    assert [source for source, _ in inputs(job)] == ["base", "left", "right"]


def test_a_tensor_without_elements_and_one_without_dimensions(models: Models) -> None:
    for name in ("base", "left"):
        models.add(name, tensors({"empty": (0, 7), "scalar": ()}))
    plan = models.plan("base left")
    assert [(job.shape, job.numel) for job in plan.jobs] == [((0, 7), 0), ((), 1)]
    assert plan.problems == ()


@pytest.mark.parametrize(
    ("base", "left", "keys", "expected"),
    [
        ("BF16", "BF16", {}, "bfloat16"),
        ("F16", "F16", {}, "float16"),
        ("F32", "BF16", {}, "float32"),
        ("F16", "BF16", {}, "float32"),
        ("BF16", "F32", {}, "float32"),
        ("F32", "F32", {"dtype": "bfloat16"}, "bfloat16"),
        ("F32", "F32", {"out_dtype": "fp16"}, "float16"),
        ("F32", "F32", {"dtype": "bfloat16", "out_dtype": "float16"}, "float16"),
    ],
)
def test_output_dtype(
    base: str, left: str, keys: dict[str, str], expected: str, models: Models
) -> None:
    models.add("base", tensors({"w": (4,)}, base))
    models.add("left", tensors({"w": (4,)}, left))
    plan = models.plan("base left", **keys)
    assert only(plan).dtype.name == plan.dtype_name == expected


def test_the_dtype_of_the_model_is_that_of_most_elements(models: Models) -> None:
    held = {**tensors({"w": (5,)}), **tensors({"norm": (4,)}, "F32")}
    for name in ("base", "left"):
        models.add(name, held)
    plan = models.plan("base left")
    assert [job.dtype.name for job in plan.jobs] == ["bfloat16", "float32"]
    assert plan.dtype_name == "bfloat16"


def test_shards(models: Models) -> None:
    for name in ("base", "left"):
        models.add(name, tensors(layered(1)))
    plan = models.plan("base left", shard_size=100)
    assert [[t.name for t in shard.tensors] for shard in plan.shards] == [
        ["model.embed_tokens.weight"],
        ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"],
        ["model.norm.weight", "lm_head.weight"],
    ]


# --- parameters --------------------------------------------------------------------------


def sce(job: Job) -> Sce:
    assert isinstance(job.rule, Sce)
    return job.rule


def topk(plan: Plan) -> dict[str, float]:
    return {job.name: sce(job).select_topk for job in plan.jobs}


def test_gradient_over_the_layers_the_config_states(models: Models) -> None:
    for name in ("base", "left"):
        models.add(name, tensors(layered(5)), num_hidden_layers=5)
    found = topk(models.plan("base left", parameters={"select_topk": [0.0, 1.0]}))
    for i in range(5):
        assert found[f"model.layers.{i}.mlp.up_proj.weight"] == i / 4
        assert found[f"model.layers.{i}.self_attn.q_proj.weight"] == i / 4
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert found[name] == 0.0


def test_gradient_over_the_layers_found_where_the_config_states_none(models: Models) -> None:
    for name in ("base", "left"):
        models.add(name, tensors(layered(3)))
    found = topk(models.plan("base left", parameters={"select_topk": [0.0, 0.5, 0.75]}))
    assert [found[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)] == [0.0, 0.5, 0.75]


def test_a_model_of_one_layer_lies_at_the_end_of_a_gradient(models: Models) -> None:
    for name in ("base", "left"):
        models.add(name, tensors(layered(1)))
    found = topk(models.plan("base left", parameters={"select_topk": [0.25, 0.75]}))
    assert found["model.layers.0.mlp.up_proj.weight"] == 0.75
    assert found["lm_head.weight"] == 0.25


def test_filters(models: Models) -> None:
    for name in ("base", "left"):
        models.add(name, tensors(layered(3)))
    filters = [
        {"filter": "mlp", "value": [0.2, 0.6]},
        {"filter": "layers.1.", "value": 0.125},
        {"filter": "embed_tokens", "value": 0.0},
        {"value": 0.5},
    ]
    found = topk(models.plan("base left", parameters={"select_topk": filters}))
    mlp = [found[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)]
    assert mlp == [0.2, 0.5 * 0.2 + 0.5 * 0.6, 0.6]
    attention = [found[f"model.layers.{i}.self_attn.q_proj.weight"] for i in range(3)]
    assert attention == [0.5, 0.125, 0.5]
    assert found["model.embed_tokens.weight"] == 0.0
    assert found["model.norm.weight"] == found["lm_head.weight"] == 0.5


def test_variant_by_filter(models: Models) -> None:
    for name in ("base", "left"):
        models.add(name, tensors(layered(1)))
    filters = [{"filter": "mlp", "value": "mergekit"}]
    plan = models.plan("base left", parameters={"variant": filters})
    assert {sce(job).variant for job in plan.jobs if "mlp" in job.name} == {"mergekit"}
    assert {sce(job).variant for job in plan.jobs if "mlp" not in job.name} == {"fuseo1"}


# --- slices ------------------------------------------------------------------------------


def part(*sources: tuple[str, int, int], **keys: Any) -> dict[str, Any]:
    return {"sources": [{"model": m, "layer_range": [a, b]} for m, a, b in sources], **keys}


def test_slices_renumber_layers(models: Models) -> None:
    for name in ("base", "left", "right"):
        models.add(name, tensors(layered(6)), num_hidden_layers=6)
    plan = models.plan(
        "base",
        slices=[
            part(("left", 0, 2), ("base", 1, 3), parameters={"select_topk": [0.25, 0.75]}),
            part(
                ("right", 4, 6),
                ("base", 0, 2),
                base_model="right",
                parameters={"select_topk": [{"filter": "mlp", "value": 0.125}]},
            ),
            part(("base", 5, 6), ("left", 5, 6), ("right", 0, 1)),
        ],
        parameters={"select_topk": [0.5, 1.0]},
    )
    assert plan.problems == ()
    assert plan.config == {"num_hidden_layers": 5}
    assert [job.name for job in plan.jobs] == list(layered(5))
    jobs = {job.name: job for job in plan.jobs}

    def layer(i: int, what: str = "mlp.up_proj") -> Job:
        return jobs[f"model.layers.{i}.{what}.weight"]

    def came_from(i: int) -> list[tuple[str, int]]:
        found = [(model, int(name.split(".")[2])) for model, name in inputs(layer(i))]
        assert inputs(layer(i, "self_attn.q_proj")) == [
            (model, f"model.layers.{n}.self_attn.q_proj.weight") for model, n in found
        ]
        return found

    assert came_from(0) == [("base", 1), ("left", 0)]
    assert came_from(1) == [("base", 2), ("left", 1)]
    assert came_from(2) == [("right", 4), ("base", 0)]
    assert came_from(3) == [("right", 5), ("base", 1)]
    assert came_from(4) == [("base", 5), ("left", 5), ("right", 0)]
    # Gradients run over each slice; where a slice has no value, the top level's gradient does too.
    assert [sce(layer(i)).select_topk for i in range(5)] == [0.25, 0.75, 0.125, 0.125, 1.0]
    attention = [sce(layer(i, "self_attn.q_proj")).select_topk for i in range(5)]
    assert attention == [0.25, 0.75, 0.5, 1.0, 1.0]

    # The first slice has the tensors before the layers, the last slice has those after them.
    assert [model for model, _ in inputs(jobs["model.embed_tokens.weight"])] == ["base", "left"]
    for name in ("model.norm.weight", "lm_head.weight"):
        assert [model for model, _ in inputs(jobs[name])] == ["base", "left", "right"]
        assert sce(jobs[name]).select_topk == 0.5
    assert sce(jobs["model.embed_tokens.weight"]).select_topk == 0.25


def test_a_slice_that_ends_behind_the_model(models: Models) -> None:
    for name in ("base", "left"):
        models.add(name, tensors(layered(3)), num_hidden_layers=3)
    plan = models.plan("base", slices=[part(("base", 1, 3), ("left", 2, 4))])
    assert plan.problems[0] == "model left: layer_range ends at 4, but it has 3 layers"


# --- what prevents a merge ---------------------------------------------------------------


def test_all_problems_are_found_at_once(models: Models) -> None:
    models.add("base", tensors({"a": (4,), "b": (2, 3), "c": (5,), "d": (6,)}))
    held = {**tensors({"b": (3, 2), "e": (1,)}), **tensors({"c": (5,)}, "I64")}
    models.add("left", {**held, **tensors({"d": (6,)})})
    plan = models.plan("base left")
    assert plan.problems == (
        "tensor a: missing in model left",
        "tensor b: shapes differ (base: [2, 3], left: [3, 2])",
        "tensor c: is I64 in model left; supported: BF16, F16, F32",
    )
    assert [job.name for job in plan.jobs] == ["d"]
    [note] = plan.notes
    assert note.startswith("model left: 1 ") and note.endswith("left out: e")


@pytest.mark.parametrize("dtype", ["I64", "F64", "BOOL"])
def test_a_dtype_that_cannot_be_merged(dtype: str, models: Models) -> None:
    models.add("base", tensors({"w": (4,)}, dtype))
    models.add("left", tensors({"w": (4,)}))
    [problem] = models.plan("base left").problems
    assert problem == f"tensor w: is {dtype} in model base; supported: BF16, F16, F32"


def test_no_tensors_at_all(models: Models) -> None:
    for name in ("base", "left"):
        models.add(name, {})
    assert models.plan("base left").problems == ("model base: holds no tensors",)


def test_another_architecture_is_a_note(models: Models) -> None:
    models.add("base", tensors({"w": (4,)}), architectures=["Qwen2ForCausalLM"])
    models.add("left", tensors({"w": (4,)}), architectures=["LlamaForCausalLM"])
    plan = models.plan("base left")
    assert plan.problems == ()
    [note] = plan.notes
    assert "left" in note and "LlamaForCausalLM" in note and "Qwen2ForCausalLM" in note
