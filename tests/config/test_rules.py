"""The rules of methods by the parameters of a config: who gives a value, for which tensor."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fuseo1_kernels.config.load import parse_config
from fuseo1_kernels.errors import ConfigError
from fuseo1_kernels.plan.plan import Plan, make_plan
from support.config_files import keys, models
from support.headers import Models, inputs, tensors

NAMES = (
    "embed_tokens",
    *(f"layers.{i}.mlp" for i in range(5)),
    *(f"layers.{i}.attn" for i in range(5)),
)


def plan_of(home: Models, data: dict[str, Any], **options: Any) -> Plan:
    config = parse_config(data)
    return make_plan(config, home.open(config), shard_size=10**9, **options)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Plans a config's merge of models of five layers, of four elements a tensor."""
    home = Models(tmp_path_factory.mktemp("models"))
    held = tensors({f"model.{name}.weight": (2, 2) for name in NAMES})
    for name in ("org/base", "org/left", "org/right"):
        home.add(name, held, num_hidden_layers=5)
    return partial(plan_of, home)


def rules(plan: Plan) -> dict[str, Any]:
    assert plan.problems == ()
    return {job.name.removeprefix("model.").removesuffix(".weight"): job.rule for job in plan.jobs}


def test_where_a_value_comes_from(planned: Any) -> None:
    """The model's own parameters, the top-level ones, the default; where filters do not match, the next place."""
    own = [{"filter": "mlp", "value": [0.0, 1.0]}]
    listed = models("base", "left", "right", weight=[9.0, 2.0, ...], density=[..., own, ...])
    shared = {"weight": 3, "density": [{"filter": "attn", "value": 0.25}]}
    found = rules(planned(keys("ties", models=listed, parameters=shared)))
    assert found["layers.3.mlp"].weights == (2.0, 3.0)
    assert found["layers.3.mlp"].densities == (0.75, 1.0)
    assert found["layers.3.attn"].densities == (0.25, 0.25)
    assert found["embed_tokens"].densities == (1.0, 1.0)
    assert found["embed_tokens"].normalize and not found["embed_tokens"].rescale


def test_a_slice_comes_between_a_model_and_the_top_level(planned: Any) -> None:
    """And where no filter of the slice matches, the top level comes."""
    only_mlp = [{"filter": "mlp", "value": 0.5}]
    sources: list[dict[str, Any]] = [
        {"model": "org/base", "layer_range": [0, 2]},
        {"model": "org/left", "layer_range": [1, 3], "parameters": {"weight": [5, 7]}},
        {"model": "org/right", "layer_range": [3, 5]},
    ]
    slices = [
        {"sources": sources, "parameters": {"weight": 2.0, "lambda": only_mlp}},
        {"sources": [{k: v for k, v in s.items() if k != "parameters"} for s in sources]},
    ]
    data = keys("task_arithmetic", slices=slices, parameters={"weight": 1.0, "lambda": 0.25})
    del data["models"]
    found = rules(planned(data))
    weights = [found[f"layers.{i}.mlp"].weights for i in range(4)]
    assert weights == [(5.0, 2.0), (7.0, 2.0), (1.0, 1.0), (1.0, 1.0)]
    assert [found[f"layers.{i}.mlp"].scale for i in range(4)] == [0.5, 0.5, 0.25, 0.25]
    assert {found[f"layers.{i}.attn"].scale for i in range(4)} == {0.25}


def test_a_models_own_filters_look_at_its_own_tensors(planned: Any) -> None:
    """Layer 3 of the model is layer 0 of the result."""
    scale = [{"filter": "layers.3.", "value": 3}, {"filter": "layers.0.", "value": 0.5}]
    source = {"model": "org/left", "layer_range": [3, 5], "parameters": {"scale": scale}}
    data = {"merge_method": "passthrough", "slices": [{"sources": [source]}]}
    plan = planned(data)
    found = rules(plan)
    assert found["layers.0.mlp"].weights == (3.0,)
    assert found["layers.1.mlp"].weights == found["embed_tokens"].weights == (1.0,)
    where = "slices[0].sources[0].parameters.scale"
    assert plan.notes == (f"{where}: filter 'layers.0.' matches no tensor",)


def test_between_two_whole_numbers_there_may_be_none(planned: Any) -> None:
    data = keys("karcher", models=models("left", "right"), parameters={"max_iter": [2, 10]})
    found = rules(planned(data))
    assert [found[f"layers.{i}.attn"].max_iter for i in range(5)] == [2, 4, 6, 8, 10]
    with pytest.raises(ConfigError, match=r"max_iter: must be a whole number .* not 4\.5"):
        planned(data | {"parameters": {"max_iter": [4, 6]}})


def test_a_required_value_that_no_filter_gives(planned: Any) -> None:
    own = [{"filter": "mlp", "value": 1.0}, {"filter": "attn", "value": 1.0}]
    data = keys("ties", models=models("left", weight=[own]), parameters={})
    with pytest.raises(ConfigError) as caught:
        planned(data)
    message = "tensor model.embed_tokens.weight: no filter matches it, but ties needs the parameter"
    assert f"{message} 'weight' for model 'org/left'" in str(caught.value)


def test_weights_that_cancel_out(planned: Any) -> None:
    data = keys("linear", models=models("left", "right", weight=[1.0, -1.0]), parameters={})
    with pytest.raises(ConfigError, match="sum to 0; change them, or set normalize: false"):
        planned(data)
    found = rules(planned(data | {"parameters": {"normalize": False}}))
    assert found["embed_tokens"].weights == (1.0, -1.0)


def test_a_filter_of_one_model_that_matches_nothing(planned: Any) -> None:
    own = [{"filter": "mpl", "value": 1.0}, {"value": 2.0}]
    plan = planned(keys("ties", models=models("left", weight=[own]), parameters={}))
    assert plan.notes == ("models[0].parameters.weight: filter 'mpl' matches no tensor",)


def test_seeds(planned: Any) -> None:
    """Of a mask: the seed, the tensor and the model; of a rule without masks nothing."""
    data = keys("dare_ties", models=models("left", "right"))
    data["parameters"]["density"] = 0.5
    drawn = [
        key
        for seed in (0, 1)
        for rule in rules(planned(data, random_seed=seed)).values()
        for key in rule.keys
    ]
    assert len(set(drawn)) == len(drawn) == 2 * 2 * len(NAMES)
    assert rules(planned(data)) == rules(planned(data, random_seed=0))
    swapped = data | {"models": models("right", "left")}
    assert rules(planned(swapped))["embed_tokens"].keys == (drawn[1], drawn[0])
    data = keys("ties") | {"parameters": {"weight": 1.0, "density": 0.5}}
    assert rules(planned(data, random_seed=1)) == rules(planned(data))


def test_layers_of_several_models_stacked(planned: Any) -> None:
    """Layers repeated and of several models; what stands before them from the first slice, after from the last."""
    parts = [("left", 0, 3), ("right", 1, 4), ("left", 2, 5)]
    slices = [
        {"sources": [{"model": f"org/{name}", "layer_range": [first, end]}]}
        for name, first, end in parts
    ]
    plan = planned({"merge_method": "passthrough", "slices": slices})
    assert plan.problems == plan.notes == ()
    assert plan.config["num_hidden_layers"] == 9

    stacked = [(name, i) for name, first, end in parts for i in range(first, end)]
    first = "model.embed_tokens.weight"
    expected = {first: [("org/left", first)]} | {
        f"model.layers.{out}.{kind}.weight": [
            (f"org/{name}", f"model.layers.{layer}.{kind}.weight")
        ]
        for out, (name, layer) in enumerate(stacked)
        for kind in ("mlp", "attn")
    }
    assert {job.name: inputs(job) for job in plan.jobs} == expected


def test_what_stacked_models_have_beside_their_layers(tmp_path: Path) -> None:
    """The last slice's model gives the tensors after the layers; a note names the tensors that no slice takes."""
    home = Models(tmp_path)
    parts = {"first": "embed_tokens", "middle": "rotary", "last": "lm_head"}
    for model, extra in parts.items():
        names = [f"model.{extra}.weight", *(f"model.layers.{i}.mlp.weight" for i in range(3))]
        home.add(model, tensors(dict.fromkeys(names, (2, 2))))
    slices = [{"sources": [{"model": name, "layer_range": [0, 1]}]} for name in parts]
    plan = plan_of(home, {"merge_method": "passthrough", "slices": slices})
    assert [job.name for job in plan.jobs] == [
        "model.embed_tokens.weight",
        *(f"model.layers.{i}.mlp.weight" for i in range(3)),
        "model.lm_head.weight",
    ]
    [note] = plan.notes
    assert "middle: 1 tensor that model" in note and "left out: model.rotary.weight" in note
