"""Configs of every method: who is merged, which base there is, where a parameter's value comes from, mistakes."""

from __future__ import annotations

from typing import Any

import pytest

from fuseo1_kernels.config.load import parse_config
from fuseo1_kernels.errors import ConfigError
from fuseo1_kernels.methods import METHODS
from support.config_files import config, keys, models, refusal

WITH_BASE = [name for name, method in METHODS.items() if method.base == "required"]
BASE_OR_NOT = [name for name, method in METHODS.items() if method.base == "optional"]
WITHOUT_BASE = [name for name, method in METHODS.items() if method.base == "ignored"]


# --- who is merged -------------------------------------------------------------------------------


def test_the_table() -> None:
    assert WITHOUT_BASE == ["linear", "karcher", "passthrough", "average"]
    assert BASE_OR_NOT == ["nuslerp", "multislerp"]


@pytest.mark.parametrize("method", METHODS)
def test_the_least_config(method: str) -> None:
    merge = parse_config(keys(method))
    assert parse_config(keys(method, base_model=merge.base_model)) == merge
    assert parse_config(merge.model_dump(exclude_defaults=True)) == merge
    base = ["org/base"] if METHODS[method].base == "required" else []
    names = [entry["model"] for entry in keys(method)["models"]]
    assert list(merge.resolve()[0].models) == base + names == merge.model_names()
    assert merge.target_names() == names
    assert merge.config_model == (base + names)[0]


@pytest.mark.parametrize("method", [*WITH_BASE, *BASE_OR_NOT])
def test_a_base_that_is_lacking_or_may_be(method: str) -> None:
    data = keys(method) | {"base_model": None}
    if method in WITH_BASE:
        with pytest.raises(ConfigError, match="base_model: is required: the model that the others"):
            parse_config(data)
    else:
        assert parse_config(data).base is None
    merge = parse_config(data | {"base_model": "org/base"})
    assert merge.resolve()[0].models[0] == merge.base == "org/base"


def test_a_base_that_is_ignored_is_a_model_like_the_others() -> None:
    data = keys("linear", models=models("left", "base", "right"), base_model="org/base")
    merge = parse_config(data)
    assert merge.base is None
    assert (
        list(merge.resolve()[0].models)
        == ["org/left", "org/base", "org/right"]
        == merge.target_names()
    )
    assert merge.config_model == "org/base"
    merge = parse_config(data | {"models": models("left", "right")})
    assert list(merge.resolve()[0].models) == ["org/left", "org/right", "org/base"]


def test_a_base_that_slices_do_not_merge_lends_its_config() -> None:
    source = {"model": "org/left", "layer_range": [0, 2]}
    data = {"merge_method": "passthrough", "slices": [{"sources": [source]}]}
    merge = parse_config(data | {"base_model": "org/base"})
    assert merge.target_names() == ["org/left"]
    assert merge.model_names() == ["org/left", "org/base"]
    assert merge.config_model == "org/base"
    assert parse_config(data).config_model == "org/left"


@pytest.mark.parametrize(
    ("method", "names", "message"),
    [
        ("slerp", ["left", "right"], "exactly 1 model beside the base 'org/base'; here are 2"),
        (
            "nearswap",
            ["base"],
            "nearswap merges exactly 1 model beside the base 'org/base'; here",
        ),
        ("nuslerp", ["left"], "models: nuslerp merges exactly 2 models"),
        ("model_stock", ["left"], "at least 2 models beside the base 'org/base'; here is 1"),
        ("ties", [], "ties merges at least 1 model beside the base"),
        (
            "passthrough",
            ["left", "right"],
            "passthrough merges exactly 1 model; here are 3, the ",
        ),
        ("passthrough", ["left"], "here are 2, the base_model 'org/base' included"),
    ],
)
def test_too_few_and_too_many_models(method: str, names: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(keys(method, models=models(*names), base_model="org/base"))
    assert message in str(caught.value)


def test_too_many_models_in_a_slice() -> None:
    sources = [{"model": f"org/{name}", "layer_range": [0, 2]} for name in ("left", "right")]
    with pytest.raises(ConfigError, match=r"slices\[0\]\.sources: passthrough merges exactly 1 "):
        parse_config({"merge_method": "passthrough", "slices": [{"sources": sources}]})


def test_no_base_to_lend_a_tokenizer() -> None:
    with pytest.raises(ConfigError, match="tokenizer_source: there is no base_model"):
        parse_config(keys("linear", tokenizer_source="base"))


# --- mistakes in parameters ----------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_required_parameters(method: str) -> None:
    for name, spec in METHODS[method].parameters.items():
        data = keys(method)
        if not spec.required:
            continue
        del data["parameters"][name]
        whose = " for model 'org/left'" if spec.per_model else ""
        with pytest.raises(ConfigError) as caught:
            parse_config(data)
        assert f"{method} needs the parameter {name!r}{whose}: give it under" in str(caught.value)


def test_a_required_parameter_of_one_model() -> None:
    for weight, message in (
        (..., "'weight' for model 'org/right'"),
        ("heavy", "models[2].parameters.weight: must be a number"),
    ):
        listed = models("base", "left", "right", weight=[..., 1.0, weight])
        assert message in refusal(merge_method="ties", models=listed, parameters={})
    listed = models("base", "left", "right", weight=[..., 1.0, 0.5])
    config(merge_method="ties", models=listed, parameters={})


MEANINGLESS = "0.5 has no meaning for task_arithmetic; leave it out"


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("sce", {"select_topK": 1}, "sce has no parameter 'select_topK'; did you mean 'select"),
        ("sce", {"weight": 1}, "sce has no parameter 'weight'; there are: select_topk, variant"),
        ("sce", {"variant": "fuse"}, "variant: must be one of fuseo1, mergekit, not 'fuse'"),
        ("sce", {"int8_mask": "maybe"}, "parameters.int8_mask: must be true or false, not 'maybe'"),
        ("sce", {1: 1}, "parameters"),
        ("sce", {"a\nb": []}, r"parameters.'a\nb': is an empty list"),
        ("linear", {"density": 0.5}, "linear has no parameter 'density'"),
        ("task_arithmetic", {"density": 0.5}, MEANINGLESS),
        ("ties", {"density": 1.5}, "parameters.density: must be a number in [0, 1], not 1.5"),
        ("ties", {"gamma": 0.1}, "ties has no parameter 'gamma'"),
        ("ties", {"lamda": 0.1}, "did you mean 'lambda'?"),
        ("karcher", {"max_iter": 1.5}, "max_iter: must be a whole number of at least 0, not 1.5"),
        ("karcher", {"max_iter": -1}, "max_iter: must be a whole number of at least 0, not -1"),
        ("karcher", {"tol": "x"}, "tol: must be a number of at least 0, not 'x'"),
        ("nearswap", {"t": -0.1}, "parameters.t: must be a number of at least 0, not -0.1"),
        ("linear", {"weight": 1e39}, "parameters.weight: must be a number, not 1e+39"),
        ("linear", {"normalize": 2}, "parameters.normalize: must be true or false, not 2"),
        (
            "arcee_fusion",
            {"weight": 1},
            "arcee_fusion has no parameter 'weight'; it has none at all",
        ),
    ],
)
def test_parameter_mistakes(method: str, parameters: dict[Any, Any], message: str) -> None:
    data = keys(method)
    data["parameters"] |= parameters
    with pytest.raises(ConfigError) as caught:
        parse_config(data)
    assert message in str(caught.value)


def test_parameters_without_effect_may_stand_at_their_default() -> None:
    data = keys("task_arithmetic")
    parse_config(data | {"parameters": {"weight": 1.0, "density": 1.0, "int8_mask": True}})


def test_a_shared_parameter_given_to_one_model() -> None:
    found = refusal(models=models("left", select_topk=[0.5]))
    assert "models[0].parameters.select_topk: all models share this parameter" in found
    assert "move it under the top-level `parameters:`" in found
