"""A mistake in a config always raises one ConfigError, which names the place and a way out."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fuseo1_kernels.errors import ConfigError
from support.config_files import SLICES, config, data, models, refusal

# --- mistakes: keys ------------------------------------------------------------------------------

LENT = {"model": "a/b"}
NO_JSON = ({"x": math.nan}, {"x": ["\ud800"]}, {"x": {1, 2}})
NO_FIT = "tokenizer_files.overrides: must fit into tokenizer_config.json"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paramters": {}}, "unknown key 'paramters'; did you mean 'parameters'?"),
        ({"Dtype": "bfloat16"}, "did you mean 'dtype'?"),
        ({"zzz": 1}, "unknown key 'zzz'; there are: models, slices, modules, merge_method"),
        ({"models": [{"modle": "a"}]}, "models[0]: unknown key 'modle'; did you mean 'model'?"),
        ({"models": ["org/left"]}, "models[0]: must be a mapping with the keys model, parameters"),
        ({"models": {"model": "a"}}, "models: must be a list, not a mapping"),
        ({"models": [{}]}, "models[0].model: is required"),
        ({"models": [{"model": 5}]}, "models[0].model: must be text, not 5"),
        *(
            (
                {
                    "tokenizer": {
                        "tokens": {
                            "t": {
                                "source": {"kind": "model_token", "model": "a/b", "token_id": row}
                            }
                        }
                    }
                },
                f"tokenizer.tokens.t.source.token_id: must be {words}, not {row}",
            )
            for row, words in ((-1, "at least 0"), (2.5, "a whole number"))
        ),
        ({"models": [{"model": " "}]}, "models[0].model: must be a directory or a hub id"),
        ({"models": [{"model": "a\nb"}]}, r"org/name; 'a\nb' has unprintable characters"),
        ({"parameters": [1]}, "parameters: must be a mapping"),
        ({"models": ...}, "exactly one of `models`, `slices` and `modules`"),
        ({"slices": []}, "exactly one of `models`, `slices` and `modules`"),
        ({"modules": {}, "models": ...}, "modules: is empty"),
        ({"modules": {"default": {}}, "models": ...}, "modules.default: exactly one of `models`"),
        ({"modules": {"default": {"slices": []}}, "models": ...}, "modules.default.slices: is em"),
        ({"modules": {"a": {"modles": []}}}, "modules.a: unknown key 'modles'; did you mean 'mod"),
        ({"modules": {"\n": {}}, "models": ...}, r"modules.'\n'.[key]: must be `default`, merge"),
        ({"select_topk": 1}, "unknown key 'select_topk'; a parameter stands under `parameters:`"),
        ({"overrides": {}}, "unknown key 'overrides'; it stands under `tokenizer_files:`"),
        ({"merge_method": ...}, "merge_method: is required: sce"),
        ({"merge_method": "sec"}, "merge_method: unknown method 'sec'; did you mean 'sce'?"),
        ({"merge_method": "SCE"}, "did you mean 'sce'?"),
        ({"merge_method": "xyz"}, "unknown method 'xyz'; there are: sce"),
        ({"merge_method": None}, "merge_method: must be text, not nothing"),
        (
            {"base_model": ...},
            "base_model: is required: the model that the others were fine-tuned from",
        ),
        ({"base_model": None}, "base_model: "),
        ({"dtype": "int8"}, "dtype: must be bfloat16, float16 or float32, not 'int8'"),
        ({"dtype": 16}, "dtype: must be"),
        ({"dtype": "bflaot16"}, "not 'bflaot16'; did you mean 'bfloat16'?"),
        ({"out_dtype": ["bf16"]}, "out_dtype: must be"),
        ({"chat_template": "chatlm"}, "of a Jinja template or a name, not 'chatlm'; did you mean"),
        ({"chat_template": 1}, "chat_template: must be text"),
        ({"chat_template": "{\ud800"}, "chat_template: is not valid Unicode"),
        ({"merge_method": 10**5000}, "must be text, not a number of thousands of digits"),
        ({"models": [{10**5000: 1}]}, "models[0]: unknown key a number of thousands of digits"),
        ({"tokenizer_files": "a/b"}, "tokenizer_files: must be a mapping"),
        ({"tokenizer_files": {"overrides": {}}}, "tokenizer_files.model: is required"),
        (
            {"tokenizer_files": LENT | {"override": {}}},
            "tokenizer_files: unknown key 'override'; did you mean 'overrides'?",
        ),
        *(({"tokenizer_files": LENT | {"overrides": bad}}, NO_FIT) for bad in NO_JSON),
        (
            {"tokenizer_files": LENT, "tokenizer_source": "base"},
            "`tokenizer_source` and `tokenizer_files` exclude each other",
        ),
        (
            {"tokenizer": {}, "tokenizer_source": "base"},
            "`tokenizer_source` and `tokenizer` exclude each other",
        ),
        (
            {"tokenizer": "union"},
            "tokenizer: must be a mapping with the keys source, tokens, pad_to",
        ),
        ({"tokenizer": {"token": {}}}, "tokenizer: unknown key 'token'; did you mean 'tokens'?"),
        *(
            (
                {"tokenizer": {"pad_to_multiple_of": n}},
                "tokenizer.pad_to_multiple_of: must be a whole",
            )
            for n in (0, True, 1.5, 1 << 40)
        ),
        ({"tokenizer": {"tokens": {3: {}}}}, "tokenizer.tokens: the token 3 is no text: put it in"),
        ({"tokenizer": {"tokens": {"a": {"force": True}}}}, "tokenizer.tokens.a: `force` needs a"),
        (
            {"tokenizer": {"tokens": {"a": {"source": {"kind": "mean"}}}}},
            "tokenizer.tokens.a.source: must be a model's name or a mapping with the kind zero or",
        ),
        (
            {"tokenizer": {"tokens": {"a": {"source": {"kind": "model_token", "model": "m"}}}}},
            "tokenizer.tokens.a.source: exactly one of `token` and `token_id` must be given",
        ),
        # A model and its adapter.
        *(
            (
                {"models": [{"model": name}]},
                f"models[0].model: '{name}': a model and its adapter are",
            )
            for name in ("a+", "+b", "org/a+org/b+org/c")
        ),
        *(
            (
                {"base_model": reference},
                "base_model: must be a directory or a hub id such as org/name",
            )
            for reference in (
                {"path": "org/a"},
                {"model": "org/a", "lora": {"revision": "main"}},
                {"model": {"path": "org/a", "subfolder": "x"}},
                {"model": "org/a", "lora": ["org/b"]},
            )
        ),
        (
            {"base_model": {"model": "org/a", "override_architecture": "X"}},
            "base_model: override_architecture: mergekit has it; not in",
        ),
        ({"dtype": "float64"}, "dtype: mergekit has float64; not in fuseo1-kernels yet"),
        ({"out_dtype": "torch.int64"}, "out_dtype: mergekit has int64; not in"),
        # Configs of mergekit's other commands.
        *(
            ({gone: ..., key: []}, f"config: is a config of {tool} (")
            for gone in ("merge_method", "models")
            for key, tool in (
                ("experts", "mergekit-moe"),
                ("gate_mode", "mergekit-moe"),
                ("genome", "mergekit-evolve"),
                ("layer_slices", "bakllama"),
                ("max_rank", "mergekit-extract-lora"),
            )
        ),
    ],
)
def test_key_mistakes(changes: dict[str, Any], message: str) -> None:
    found = refusal(**changes)
    assert found.startswith("config: ")
    assert message in found


@pytest.mark.parametrize(
    ("method", "own", "parameters", "message"),
    [
        ("linear", {"weight": [1, -1]}, {}, "linear: the weights sum to 0; change them"),
        ("average", {}, {"schedule": "ema"}, "average: the schedule ema needs a decay"),
        (
            "della",
            {"weight": [1, 1], "density": [0.2, 0.5]},
            {"epsilon": 0.3},
            "model org/left: density 0.2 with epsilon 0.3",
        ),
    ],
)
def test_values_that_do_not_go_together(
    method: str, own: dict[str, list[float]], parameters: dict[str, Any], message: str
) -> None:
    """One problem, in slices too; values that differ between tensors wait for the models' tensors."""
    listed = models("left", "right", **own)
    base = "org/base" if method == "della" else "org/left"
    changes: dict[str, Any] = {"merge_method": method, "base_model": base}
    changes["parameters"] = parameters
    found = refusal(**changes, models=listed)
    assert found.startswith(f"config: {message}") and "\n" not in found
    if method == "linear":
        cut = [{"sources": [m | {"layer_range": [i, i + 1]} for m in listed]} for i in range(3)]
        with pytest.raises(ConfigError) as caught:
            config(**changes, models=..., slices=cut)
        assert len(caught.value.args) == 1
        listed[0]["parameters"]["weight"] = [1, 2]
        assert config(**changes, models=listed).models is not None


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            {"base_model": ..., "dtype": "int4", "models": [{"model": 1}], "dtyp": 1},
            ("base_model: is req", "dtype: must be", "models[0].model: must be", "key 'dtyp'"),
        ),
        (
            {"models": [], "parameters": {"select_topk": [2, 3], "variant": 1}, "slices_of": "h"},
            ("slices_of: says which",),
        ),
        (
            {"models": [], "parameters": {"select_topk": [2, 3], "variant": 1, "lambda": 1}},
            ("sce merges at least", "select_topk[0]: must", "variant: must be", "'lambda'"),
        ),
        (
            {"merge_method": "ties", "models": models("left", "right"), "parameters": {}},
            ("'weight' for model 'org/left'", "'weight' for model 'org/right'"),
        ),
    ],
)
def test_all_problems_are_named_at_once(changes: dict[str, Any], messages: tuple[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    found = [str(line) for line in caught.value.args]
    assert len(found) == len(messages), found
    for message in messages:
        assert [message in line for line in found].count(True) == 1, (message, found)


# --- mistakes: models ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["org/left", "org/right", "org/left"], "models[2].model: 'org/left' is listed twice"),
        (["org/base", "org/base", "org/left"], "models[1].model: 'org/base' is listed twice"),
        (["org/base"], "models: sce merges at least 1 model beside the base 'org/base'"),
        ([], "models: sce merges at least 1 model beside the base"),
        *(
            (["org/left", other], f"'org/left' and '{other}' are one model")
            for other in ("./org/left", "org/right/../left", "org/left/.")
        ),
        (["org/base/", "org/left"], "'org/base' and 'org/base/' are one model"),
    ],
)
def test_model_mistakes(names: list[str], message: str) -> None:
    assert message in refusal(models=[{"model": name} for name in names])


def changed(place: int, **changes: Any) -> list[dict[str, Any]]:
    """The slices of SLICES; a source of the first has keys changed, or left out where the change is `...`."""
    slices: list[dict[str, Any]] = data(SLICES)["slices"]
    source = slices[0]["sources"][place] | changes
    slices[0]["sources"][place] = {k: v for k, v in source.items() if v is not ...}
    return slices


NO_RANGES = (
    *([0], [0, 1, 2], [4, 4], [4, 2], [0, 10**9], [0, 10**5000], [-1, 3]),
    *(["0", "4"], [0, 4.0], [False, 4], 4, None),
)
FIRST = "slices[0].sources"


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ([], "slices: is empty"),
        ([{}], f"{FIRST}: is required"),
        ([{"sources": []}], f"{FIRST}: sce merges at least 1 model beside"),
        (
            [{"sources": [{"model": "org/base", "layer_range": [0, 2]}]}],
            f"{FIRST}: sce merges at least 1 model beside",
        ),
        (
            [{"residual_weight": 0.5}],
            "slices[0]: mergekit has the key 'residual_weight', and never",
        ),
        ([{"residual_weight": "a"}], "slices[0]: residual_weight must be a number, not 'a'"),
        (changed(0, layer_range=...), f"{FIRST}[0].layer_range: is required"),
        (changed(1, layer_range=[0, 3]), f"{FIRST}: every layer_range must be as long"),
        (changed(1, layer_range=[0, 3]), "these have 4, 3 layers"),
        (changed(1, model="org/left"), f"{FIRST}[1].model: 'org/left' is listed twice"),
        (changed(1, model="org/right"), f"{FIRST}: the base 'org/base' is not among them"),
        (changed(1, weight=1), f"{FIRST}[1]: unknown key 'weight'; a parameter stands under `par"),
        (
            changed(1, parameters={"select_topk": 0.5}),
            f"{FIRST}[1].parameters.select_topk: all models share",
        ),
        *(
            (
                changed(1, layer_range=layers),
                f"{FIRST}[1].layer_range: must be two whole numbers [first, end)",
            )
            for layers in NO_RANGES
        ),
    ],
)
def test_slice_mistakes(slices: list[Any], message: str) -> None:
    assert message in refusal(SLICES, slices=slices)


def test_slices_without_any_base() -> None:
    slices = data(SLICES)["slices"]
    found = refusal(SLICES, base_model=...)
    assert "slices[0].sources.base_model" not in found
    assert "slices[0].base_model: is required: the model that the others were" in found
    assert "slices[1].base_model" not in found
    module = {"modules": {"default": {"slices": slices}}, "slices": ..., "base_model": ...}
    assert "modules.default.slices[0].base_model: is required" in refusal(SLICES, **module)


# --- mistakes: parameters ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.5, -0.1, "abc", math.nan, math.inf, True, "nan", "1e1"])
def test_values_out_of_bounds(value: Any) -> None:
    must = "must be a number in [0, 1], not "
    for setting, place in (
        (value, ""),
        ([0.5, value], "[1]"),
        ([{"filter": "mlp", "value": 0.5}, {"value": value}], "[1].value"),
        ({"filter": "mlp", "value": [value, 0.5]}, "[0].value[0]"),
    ):
        found = refusal(parameters={"select_topk": setting})
        assert found.startswith(f"config: parameters.select_topk{place}: {must}{value!r}")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ([], "parameters.select_topk: is an empty list"),
        (None, "parameters.select_topk: must be a value, a list of values or a list of filters"),
        ([[0.1], [0.2]], "parameters.select_topk: must be a value"),
        ([0.1, {"value": 1.0}], "mixes filters with the plain value 0.1"),
        ([{"filter": "mlp"}], "a filter takes the keys `filter` and `value`, not: 'filter'"),
        ([{}], "a filter takes the keys `filter` and `value`, not: none"),
        ([{"filtre": "mlp", "value": 1}], "not: 'filtre', 'value'"),
        ([{"\x1b": 1, 10**5000: 1}], r"not: '\x1b', a number of thousands of digits"),
        (10**400, "parameters.select_topk: is too large a number: 1000"),
        ([0.5, -(10**5000)], "is too large a number: a number of thousands of digits"),
        ([{"value": 10**400}], "is too large a number"),
        ([{"filter": 3, "value": 1}], "`filter` must be a part of a tensor's name, not 3"),
        ([{"filter": "\ud800", "value": 1}], r"a part of a tensor's name, not '\ud800'"),
        ([{"filter": "mlp", "value": []}], "is an empty list"),
        ([{"value": [{"value": 1}]}], "must be a value"),
        ([{"value": None}], "must be a value"),
    ],
)
def test_settings_of_no_known_shape(setting: Any, message: str) -> None:
    assert message in refusal(parameters={"select_topk": setting})
