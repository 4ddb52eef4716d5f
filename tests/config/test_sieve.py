"""Keys without effect: errors that name the option, or notes; mergekit's own parser says which it takes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fuseo1_kernels.config.load import load_config, parse_config
from fuseo1_kernels.errors import ConfigError
from support.config_files import data, keys, models, refusal

OPTION = "(--like-mergekit ignores it)"
SLICED = """
slices:
  - sources:
      - {model: org/left, layer_range: [0, 4], parameters: {weight: 1.0, density: 0.5}}
      - {model: org/base, layer_range: [0, 4]}
    parameters:
      lambda: [{filter: mlp, value: 0.5}, {value: 1.0}]
merge_method: ties
base_model: org/base
"""
MODULES = """
modules:
  default:
    models:
      - {model: org/left, parameters: {weight: {filter: mlp, value: 1.0}}}
      - {model: org/right, parameters: {weight: 0.5}}
    parameters: {normalize: 1.0}
merge_method: linear
"""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all mappings but those whose keys are names."""
    if isinstance(value, dict):
        if path != ("modules",):
            yield path
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


def with_key(text: str, path: tuple[Any, ...], key: str, value: Any) -> dict[str, Any]:
    made: dict[str, Any] = copy.deepcopy(yaml.safe_load(text))
    mapping: Any = made
    for step in path:
        mapping = mapping[step]
    mapping[key] = value
    return made


ANYWHERE = [(text, path) for text in (SLICED, MODULES) for path in places(yaml.safe_load(text))]
SCALARS = st.one_of(st.floats(0, 1), st.booleans(), st.text("ab", min_size=1))


@pytest.mark.peer
@given(
    st.sampled_from(ANYWHERE),
    st.sampled_from(["weigth", "gamma", "x", "t"]),
    SCALARS | st.none() | st.lists(SCALARS, min_size=1) | st.dictionaries(st.text(), SCALARS),
)
def test_what_mergekit_ignores_is_an_error_or_a_note(
    place: tuple[str, tuple[Any, ...]], key: str, value: Any
) -> None:
    config = pytest.importorskip("mergekit.config")
    text, path = place
    made = with_key(text, path, key, value)
    try:
        config.MergeConfiguration.model_validate(made)
        taken = True
    except (ValueError, RuntimeError):
        taken = False
    with pytest.raises(ConfigError) as caught:
        parse_config(made)
    assert repr(key) in str(caught.value) or f".{key}:" in str(caught.value)
    assert not taken or "filter" in str(caught.value) or OPTION in str(caught.value)
    if not taken:
        with pytest.raises(ConfigError):
            parse_config(made, like_mergekit=True)
        return
    merge = parse_config(made, like_mergekit=True)
    assert merge.to_yaml() == load_config("as it was", text).to_yaml()
    [note] = merge.notes
    assert note.startswith("ignored, as mergekit does: ") and repr(key) in note


@pytest.mark.parametrize("key", ["int8_mask", "embed_slerp"])
@pytest.mark.parametrize(
    ("text", "path"), [p for p in ANYWHERE if not {"lambda", "weight"} & {*p[1]}]
)
def test_what_never_changes_a_result_is_noted(key: str, text: str, path: tuple[Any, ...]) -> None:
    merge = parse_config(with_key(text, path, key, True))
    taken = text == SLICED and key == "int8_mask" and path[-1:] == ("parameters",)
    if taken and "sources" not in path:  # ties has it
        assert not merge.notes
        return
    [note] = merge.notes
    assert f"{key} has no effect" in note
    assert merge.to_yaml() == load_config("as it was", text).to_yaml()


def test_a_name_and_parameters_of_the_base_are_noted() -> None:
    listed = models("base", "left", weight=[0.3, 1.0])
    merge = parse_config(keys("ties", models=listed, parameters={}) | {"name": "First"})
    assert merge.notes == (
        "name: 'First' is a remark; it has no effect on the merge",
        "models[0].parameters: 'org/base' is the base; its own parameters have no effect",
    )


def test_the_last_of_equal_keys_holds_as_in_mergekit() -> None:
    text = yaml.safe_dump(keys("linear")) + "dtype: float16\ndtype: float32\n"
    with pytest.raises(ConfigError, match=r"'dtype' stands here again .*--like-mergekit does, too"):
        load_config("twice.yaml", text)
    merge = load_config("twice.yaml", text, like_mergekit=True)
    assert merge.output_dtype == "float32"
    [note] = merge.notes
    assert note.endswith("(first in line 6); the last one holds, as in mergekit")


def test_keys_of_filters_are_ignored_in_parameters_of_other_methods_too() -> None:
    setting = [{"filter": "mlp", "value": 1.0, "x": 1}, {"value": 0.5}]
    merge = parse_config(data(parameters={"weight": setting}), like_mergekit=True)
    assert [note.rpartition("mergekit does: ")[2] for note in merge.notes] == [
        "parameters.weight[0]: a filter has no key 'x'",
        "parameters: sce has no parameter 'weight'; there are: select_topk, variant, int8_mask",
    ]


def test_in_a_chain() -> None:
    first = yaml.safe_dump(keys("linear") | {"name": "first", "wieght": 1})
    last = yaml.safe_dump(keys("linear", models=[{"model": "first"}, {"model": "org/left"}]))
    text = f"{first}---\n{last}dtype: float16\ndtype: float32\n"
    merge = load_config("chain.yaml", text, like_mergekit=True)
    assert [*merge.earlier] == ["first"] and merge.output_dtype == "float32"
    of_first, again = merge.notes
    assert of_first.startswith("merge first: ignored, as mergekit does: unknown key 'wieght'")
    assert "the key 'dtype' stands here again" in again


@pytest.mark.parametrize("value", [0.5, [0.2, 1.5]])
def test_a_density_of_task_arithmetic(value: Any) -> None:
    made = keys("task_arithmetic") | {"parameters": {"weight": 1.0, "density": value}}
    assert OPTION in refusal(yaml.safe_dump(made))
    assert "density" not in parse_config(made, like_mergekit=True).to_yaml()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer_files": {"model": "a", "overides": {}}}, "tokenizer_files: unknown key"),
        ({"parameters": {"x": None}}, "parameters.x: must be a value"),
        ({"parameters": {1: 1}}, "parameters.1: must be text: the name of a parameter"),
        ({"dtype": "bflaot16"}, "dtype: must be bfloat16"),
        ({"merge_method": "sec"}, "unknown method 'sec'"),
    ],
)
def test_what_mergekit_does_not_ignore_stays_an_error(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(data(**changes), like_mergekit=True)
    assert message in str(caught.value) and OPTION not in str(caught.value)
