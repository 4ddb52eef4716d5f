"""The five FuseO1 recipes: present, described, valid, and of the published models' ingredients."""

from __future__ import annotations

import pytest

from fuseo1_kernels.config.load import load_config
from fuseo1_kernels.config.recipes import find_recipe, list_recipes, nearest_recipe
from support.config_files import value
from support.recipes import PUBLISHED, R1


def test_list() -> None:
    recipes = list_recipes()
    assert [recipe.name for recipe in recipes] == sorted(PUBLISHED)
    for recipe in recipes:
        assert recipe.description.endswith(".")
        assert "DeepSeek-R1" in recipe.description
    assert len({recipe.description for recipe in recipes}) == len(recipes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe(name: str) -> None:
    text = find_recipe(name)
    assert text is not None
    config = load_config(name, text)
    base, targets = PUBLISHED[name]
    assert config.merge_method == "sce"
    assert config.base_model == base
    assert config.target_names() == targets
    assert config.output_dtype == "bfloat16"
    assert value(config, "select_topk", "model.norm.weight") == 1.0
    assert value(config, "variant", "model.norm.weight") == "fuseo1"
    assert config.tokenizer_files is not None
    assert config.tokenizer_files.model == R1
    assert config.tokenizer_files.overrides == {"add_bos_token": False}


def test_find_in_any_case() -> None:
    name = "FuseO1-DeepSeekR1-QwQ-32B-Preview"
    assert find_recipe(name.upper()) == find_recipe(name.lower()) == find_recipe(name)
    assert find_recipe("") is None
    assert find_recipe("../recipes/" + name) is None
    assert find_recipe(name + ".yaml") is None


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("FuseO1-DeekSeekR1-QwQ-32B-Preview", "FuseO1-DeepSeekR1-QwQ-32B-Preview"),
        ("fuseo1-deepseekr1-qwq-skyt1-32b", "FuseO1-DeepSeekR1-QwQ-SkyT1-32B-Preview"),
        ("FuseO1-DeepSeekR1-Qwen2.5-Code-32B", "FuseO1-DeepSeekR1-Qwen2.5-Coder-32B-Preview"),
        ("merge.yaml", None),
    ],
)
def test_nearest(written: str, nearest: str | None) -> None:
    assert nearest_recipe(written) == nearest
