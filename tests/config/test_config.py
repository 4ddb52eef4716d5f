"""The config: what it understands, how parameters resolve, and how it is written out."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuseo1_kernels import methods
from fuseo1_kernels.config.load import load_config
from fuseo1_kernels.config.schema import InputModel, MergeConfig, OutputSlice, SliceSource
from fuseo1_kernels.config.yaml_text import dump_yaml, read_yaml
from support.config_files import FUSEO1, SLICES, config, value
from support.paths import ROOT

# --- what it understands -------------------------------------------------------------------------


def test_fuseo1_shape() -> None:
    merge = load_config("fuseo1.yaml", FUSEO1)
    assert merge.merge_method == "sce"
    assert merge.base_model == "org/base"
    assert merge.model_names() == ["org/base", "org/left", "org/right"]
    assert merge.target_names() == ["org/left", "org/right"]
    assert merge.output_dtype == "bfloat16"
    assert merge.slices is None


def test_base_may_stand_outside_of_models_or_anywhere_in_it() -> None:
    right_first = [{"model": "org/right"}, {"model": "org/base"}, {"model": "org/left"}]
    merge = config(models=right_first)
    assert merge.model_names() == ["org/base", "org/right", "org/left"]
    assert merge.target_names() == ["org/right", "org/left"]
    assert config(models=[{"model": "org/left"}]).target_names() == ["org/left"]


def test_slices() -> None:
    merge = config(SLICES)
    assert merge.models is None
    assert merge.slices is not None
    assert [source.layer_range for source in merge.slices[1].sources] == [(2, 6), (4, 8)]
    assert merge.slices[1].base_model == "org/right"
    assert merge.model_names() == ["org/base", "org/left", "org/right"]
    assert merge.output_dtype is None


def test_a_model_that_lends_its_tokenizer_is_not_merged() -> None:
    lent = {"model": "org/chat", "overrides": {"add_bos_token": False}}
    merge = config(tokenizer_files=lent)
    assert merge.tokenizer_files is not None
    assert merge.tokenizer_files.overrides == {"add_bos_token": False}
    assert "org/chat" not in merge.model_names()
    assert config(tokenizer_files={"model": "org/chat", "overrides": None}).tokenizer_files
    assert config(tokenizer_source="org/chat").model_names() == merge.model_names()
    assert config(tokenizer_source="base").tokenizer_source == "base"


@pytest.mark.parametrize(
    ("written", "meant"),
    [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32"), ("torch.float16", "float16")],
)
def test_dtype_spellings(written: str, meant: str) -> None:
    assert config(dtype=written).output_dtype == meant
    assert config(dtype="float32", out_dtype=written).output_dtype == meant
    assert config(dtype=written, out_dtype=None).output_dtype == meant


@pytest.mark.parametrize("template", ["auto", "{{ messages }}", "{% for m in messages %}\n..."])
def test_chat_template(template: str) -> None:
    assert config(chat_template=template).chat_template == template


def test_keys_without_a_value_are_absent() -> None:
    merge = config(parameters=None, slices=None, dtype=None, chat_template=None)
    assert merge == config(parameters=..., dtype=...)


def test_sections_may_be_built_in_python() -> None:
    models = [InputModel(model="org/left"), InputModel(model="org/right")]
    merge = MergeConfig(merge_method="sce", base_model="org/base", models=models)
    assert merge.target_names() == ["org/left", "org/right"]


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        config().base_model = "org/other"


def test_yaml_merge_keys_and_aliases() -> None:
    text = FUSEO1.replace("dtype: bfloat16", "dtype: &kind bfloat16\nout_dtype: *kind")
    assert load_config("alias.yaml", text).out_dtype == "bfloat16"
    text = SLICES.replace(
        "- {model: org/left, layer_range: [0, 4]}",
        "- &a {model: org/left, <<: {layer_range: [0, 4]}}",
    )
    assert load_config("merge.yaml", text) == config(SLICES)


# --- parameters ----------------------------------------------------------------------------------


def topk(setting: Any, *, tensor: str = "w", t: float = 0.0) -> Any:
    merge = config(parameters={"select_topk": setting})
    return value(merge, "select_topk", tensor, t)


def test_scalars() -> None:
    assert topk(0.3) == 0.3
    assert type(topk(1)) is float
    assert topk("1e-1") == 0.1
    assert topk(0) == 0.0


@pytest.mark.parametrize(
    ("gradient", "t", "value"),
    [
        ([0.1, 0.9], 0.0, 0.1),
        ([0.1, 0.9], 0.5, 0.5),
        ([0.1, 0.9], 1.0, 0.9),
        ([0.0, 1.0, 0.5], 0.25, 0.5),
        ([0.0, 1.0, 0.5], 0.5, 1.0),
        ([0.0, 1.0, 0.5], 0.75, 0.75),
        (["1e-1", 0.3], 0.5, 0.2),
        ([0.7], 0.4, 0.7),
    ],
)
def test_gradients(gradient: list[Any], t: float, value: float) -> None:
    assert topk(gradient, t=t) == pytest.approx(value, abs=1e-15)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0, 1), st.sampled_from([0.0, 1.0])
)
def test_gradients_stay_between_their_values(values: list[float], t: float, end: float) -> None:
    assert min(values) - 1e-15 <= topk(values, t=t) <= max(values) + 1e-15
    assert topk(values, t=end) == values[-int(end)]


def test_gradient_of_names_takes_the_last_one_passed() -> None:
    merge = config(parameters={"variant": ["fuseo1", "mergekit", "fuseo1"]})
    places = {0.0: "fuseo1", 0.49: "fuseo1", 0.5: "mergekit", 0.99: "mergekit", 1.0: "fuseo1"}
    for t, variant in places.items():
        assert value(merge, "variant", t=t) == variant


def test_first_matching_filter_wins() -> None:
    setting = [
        {"filter": "mlp", "value": [0.2, 0.4]},
        {"filter": "layers.3.mlp", "value": 0.9},
        {"filter": "*", "value": 0.6},
        {"value": 0.7},
    ]
    assert topk(setting, tensor="model.layers.3.mlp.up_proj.weight", t=0.5) == pytest.approx(0.3)
    assert topk(setting, tensor="model.norm.weight") == 0.6


@pytest.mark.parametrize("last", [{"value": 0.5}, {"filter": None, "value": 0.5}])
def test_filter_without_a_pattern_matches_all(last: dict[str, Any]) -> None:
    assert topk([{"filter": "mlp", "value": 0.1}, last], tensor="lm_head.weight") == 0.5
    assert topk(last, tensor="lm_head.weight") == 0.5


def test_default_where_no_filter_matches() -> None:
    merge = config(parameters={"select_topk": [{"filter": "mlp", "value": 0.1}]})
    assert value(merge, "select_topk", "self_attn") == 1.0
    assert value(config(parameters=...), "select_topk", "mlp") == 1.0


# --- written out ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "merge",
    [
        config(),
        config(SLICES),
        config(parameters={"select_topk": [0.1, "1e-1"], "variant": "mergekit"}),
        config(parameters={"select_topk": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]}),
        config(chat_template="{% for m in messages %}\n  {{ m }} \n{% endfor %}\n\n"),
        config(chat_template="{{ '<▁é>' }}", tokenizer_source="base"),
        config(tokenizer_files={"model": "a/b", "overrides": {"x": {"y": [1, None, "é"]}}}),
    ],
)
def test_to_yaml_reads_back(merge: MergeConfig) -> None:
    assert load_config("again.yaml", merge.to_yaml()) == merge


LAYOUT = " \n\r\t\x85\u2028\u2029\ufeff:#-|>'\"\\a"  # what YAML gives a meaning, and a letter


@given(st.text() | st.text(LAYOUT))
@example("\x85")  # was written as it is, and read as "\n"
@example("a\n\x85")
def test_any_text_reads_back(text: str) -> None:
    data = {text: {"value": text, "list": [text], "more": [{text: None}]}}
    assert read_yaml(dump_yaml(data), "it") == [data]


def test_to_yaml_is_what_one_would_write() -> None:
    assert config().to_yaml() == FUSEO1.lstrip()
    filters = [{"filter": "mlp", "value": [0.1, 0.9]}, {"value": 1.0}]
    assert "    - filter: mlp\n      value: [0.1, 0.9]\n    - value: 1.0\n" in (
        config(parameters={"select_topk": filters}).to_yaml()
    )


# --- docs/config.md ------------------------------------------------------------------------------


def test_docs_name_every_key_and_parameter_and_their_example_holds() -> None:
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([^`]+)`", text, re.MULTILINE))
    last = {row.rpartition(".")[2] for row in rows}
    sections = (MergeConfig, OutputSlice, SliceSource)
    assert {key for section in sections for key in section.model_fields} - {"model"} <= last
    for name, method in methods.METHODS.items():
        assert f"`{name}`" in text and method.parameters.keys() <= rows
    for part in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        assert load_config("docs/config.md", part).model_names()
