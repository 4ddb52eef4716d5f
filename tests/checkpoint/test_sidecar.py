"""The small files beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.checkpoint.sidecar import check_same_vocabulary, model_card, sidecar_files
from fuseo1_kernels.checkpoint.source import Source
from fuseo1_kernels.errors import CheckpointError, ConfigError
from support.checkpoint_files import single_model, write_json

TOKENIZER = {
    "tokenizer.json": {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}, "added_tokens": []},
    "tokenizer_config.json": {"add_bos_token": True, "chat_template": "old", "unicode": "\uff5c"},
    "special_tokens_map.json": {},
}


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def model(name: str, files: dict[str, Any] | None = None, **config: Any) -> Source:
        path = single_model(tmp_path / name, **config)
        for file, content in (files or {}).items():
            if isinstance(content, str):
                (path / file).write_text(content, encoding="utf-8")
            else:
                write_json(path / file, content)
        return open_source(str(path))

    return model


def files(base: Source, **changes: Any) -> dict[str, bytes]:
    arguments: dict[str, Any] = {
        "base": base,
        "tokenizer": None,
        "tokenizer_overrides": {},
        "chat_template": None,
        "sources": [base],
        "out_dtype": "bfloat16",
        "config": base.config,
        "vocab_size": None,
        "copy_tokenizer": True,
    }
    return sidecar_files(**(arguments | changes))


# --- config.json and generation_config.json ----------------------------------------------


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({}, {"torch_dtype": "bfloat16"}),
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        (
            {"dtype": "float32", "torch_dtype": "x"},
            {"dtype": "bfloat16", "torch_dtype": "bfloat16"},
        ),
    ],
)
def test_dtype(config: dict[str, Any], changed: dict[str, Any], make: Any) -> None:
    base = make("base", model_type="qwen2", **config)
    written = json.loads(files(base)["config.json"])
    assert written == {"num_hidden_layers": 2, "model_type": "qwen2"} | changed
    assert base.config == {"num_hidden_layers": 2, "model_type": "qwen2"} | config


def test_the_plans_config_is_written(make: Any) -> None:
    base = make("base", layer_types=["x", "y"], vocab_size=7)
    config = base.config | {"num_hidden_layers": 1, "layer_types": ["x"]}
    written = json.loads(files(base, config=config, vocab_size=5)["config.json"])
    assert written == config | {"vocab_size": 5, "torch_dtype": "bfloat16"}


def test_generation_config_is_copied_byte_for_byte(make: Any) -> None:
    base = make("base", {"generation_config.json": '{"top_p":   0.8}'})
    assert files(base)["generation_config.json"] == b'{"top_p":   0.8}'


def test_nothing_there_nothing_written(make: Any) -> None:
    base = make("base")
    assert files(base).keys() == {"config.json"}
    (base.path / "config.json").unlink()
    assert files(open_source(str(base.path))) == {}


# --- the tokenizer -----------------------------------------------------------------------


def test_tokenizer_is_copied_byte_for_byte(make: Any) -> None:
    base = make("base", {**TOKENIZER, "merges.txt": "a b\r\n", "README.md": "no", "x.json": {}})
    written = files(base)
    assert written.keys() == {"config.json", *TOKENIZER, "merges.txt"}
    for name in (*TOKENIZER, "merges.txt"):
        assert written[name] == (base.path / name).read_bytes()


def test_tokenizer_of_a_named_model_with_overrides(make: Any) -> None:
    base = make("base", {**TOKENIZER, "vocab.json": {}})
    other = make("other", {**TOKENIZER, "chat_template.jinja": "R1"})
    written = files(base, tokenizer=other, tokenizer_overrides={"add_bos_token": False})
    assert written.keys() == {"config.json", *TOKENIZER, "chat_template.jinja"}
    assert json.loads(written["tokenizer_config.json"]) == {
        "add_bos_token": False,
        "chat_template": "old",
        "unicode": "\uff5c",
    }
    assert "\uff5c" in written["tokenizer_config.json"].decode()
    assert written["chat_template.jinja"] == b"R1"
    assert written["tokenizer.json"] == (other.path / "tokenizer.json").read_bytes()


def test_no_tokenizer(make: Any) -> None:
    base = make("base", TOKENIZER)
    assert files(base, copy_tokenizer=False).keys() == {"config.json"}


@pytest.mark.parametrize(
    "asked", [{"chat_template": "x"}, {"tokenizer_overrides": {"a": 1}}, {"tokenizer": True}]
)
def test_no_tokenizer_but_something_for_it(asked: dict[str, Any], make: Any) -> None:
    base = make("base", TOKENIZER)
    if "tokenizer" in asked:
        asked = {"tokenizer": base}
    with pytest.raises(ConfigError, match="--no-copy-tokenizer"):
        files(base, copy_tokenizer=False, **asked)


def test_a_named_model_without_tokenizer(make: Any) -> None:
    with pytest.raises(CheckpointError, match=r"other: has no tokenizer files"):
        files(make("base", TOKENIZER), tokenizer=make("other"))


def test_nothing_to_override(make: Any) -> None:
    base = make("base", {"tokenizer.json": {}})
    with pytest.raises(
        CheckpointError, match=r"no tokenizer_config.json to override add_bos_token"
    ):
        files(base, tokenizer_overrides={"add_bos_token": False})


def test_bad_tokenizer_config(make: Any) -> None:
    base = make("base", {"tokenizer_config.json": "[]"})
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: must be a JSON object"):
        files(base, chat_template="x")


# --- the chat template -------------------------------------------------------------------


def test_literal_template_replaces_every_other(make: Any) -> None:
    base = make("base", {**TOKENIZER, "chat_template.jinja": "a", "chat_template.json": {"x": "b"}})
    written = files(base, chat_template="{{ new\uff5c }}")
    assert written["chat_template.jinja"].decode() == "{{ new\uff5c }}"
    assert json.loads(written["chat_template.json"]) == {"chat_template": "{{ new\uff5c }}"}
    assert json.loads(written["tokenizer_config.json"]) == {
        "add_bos_token": True,
        "chat_template": "{{ new\uff5c }}",
        "unicode": "\uff5c",
    }


def test_most_common_template(make: Any) -> None:
    def with_template(name: str, template: Any) -> Source:
        source: Source = make(name, {"tokenizer_config.json": {"chat_template": template}})
        return source

    base = make("base", TOKENIZER)  # "old"
    jinja = make("jinja", {"chat_template.jinja": "new\n", "tokenizer_config.json": {}})
    listed = with_template(
        "listed", [{"name": "tool", "template": "t"}, {"name": "default", "template": "new"}]
    )
    nameless = with_template("nameless", [{"name": "tool", "template": "t"}])
    none = make("none")

    def chosen(*sources: Source) -> Any:
        written = files(base, chat_template="auto", sources=sources)
        return json.loads(written["tokenizer_config.json"])["chat_template"]

    assert chosen(base, jinja, listed) == "new"
    assert chosen(base, jinja, none) == "old"  # a tie: the first
    assert chosen(jinja, base) == "new"
    assert chosen(none, nameless) == "old"  # nobody has one: as the tokenizer has it


# --- ids of tokens -----------------------------------------------------------------------


def tokenizer(vocab: Any, **added: int) -> dict[str, Any]:
    tokens = [{"content": token, "id": index} for token, index in added.items()]
    return {"tokenizer.json": {"model": {"vocab": vocab}, "added_tokens": tokens}}


def test_same_vocabulary(make: Any) -> None:
    reference = make("reference", tokenizer({"a": 0, "b": 1}, eos=2))
    check_same_vocabulary(reference, [])
    check_same_vocabulary(
        reference,
        [
            reference,
            make("more", tokenizer({"a": 0, "b": 1}, eos=2, think=3)),
            make("fewer", tokenizer({"b": 1})),
            make("renamed", tokenizer({"a": 0, "b": 1}, bos=2)),
            make("unigram", tokenizer([["a", -1.5], ["b", -2]])),
            make("old", {"vocab.json": {"a": 0}, "added_tokens.json": {"eos": 2}}),
            make("none"),
        ],
    )


@pytest.mark.parametrize(
    ("other", "token", "index"),
    [
        (tokenizer({"a": 1, "b": 0}), "a", 1),
        (tokenizer({"a": 0}, eos=3), "eos", 3),
        (tokenizer([["x", 0], ["y", 0], ["a", 0]]), "a", 2),
        ({"vocab.json": {"a": 0}, "added_tokens.json": {"eos": 5}}, "eos", 5),
    ],
)
def test_another_id(other: dict[str, Any], token: str, index: int, make: Any) -> None:
    reference = make("reference", tokenizer({"a": 0, "b": 1}, eos=2))
    with pytest.raises(CheckpointError) as caught:
        check_same_vocabulary(reference, [reference, make("other", other)])
    old = {"a": 0, "eos": 2}[token]
    message = str(caught.value)
    assert f"token '{token}' has id {old} in {reference.name} and {index} in" in message
    for part in ("other", "permute", "tokenizer_files"):
        assert part in message


@pytest.mark.parametrize(
    "data", [{}, {"model": {}}, {"model": {"vocab": 3}}, {"model": {"vocab": [1]}}, {"model": []}]
)
def test_bad_tokenizer(data: dict[str, Any], make: Any) -> None:
    reference = make("reference", tokenizer({"a": 0}))
    with pytest.raises(CheckpointError, match=r"tokenizer.json: not a tokenizer"):
        check_same_vocabulary(reference, [make("other", {"tokenizer.json": data})])


# --- the model card ----------------------------------------------------------------------


def card(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "name": "Fused",
        "recipe_yaml": "merge_method: sce\n",
        "base": "Qwen/Qwen2.5-32B@main",
        "targets": ["Qwen/QwQ-32B-Preview", "/local/model"],
        "method": "sce",
        "dtype": "bfloat16",
        "versions": {"fuseo1-kernels": "0.1.0"},
    }
    return model_card(**(arguments | changes)).decode()


def test_model_card() -> None:
    text = card()
    _, front, body = text.split("---\n")
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "tags": ["merge", "fuseo1-kernels", "sce"],
        "base_model": ["Qwen/Qwen2.5-32B", "Qwen/QwQ-32B-Preview"],
        "base_model_relation": "merge",
    }
    for part in (
        "# Fused",
        "```yaml\nmerge_method: sce\n```\n",
        "- base: `Qwen/Qwen2.5-32B@main`",
        "- merged: `/local/model`",
        "2 models with the method `sce`",
        "bfloat16",
        "- fuseo1-kernels 0.1.0",
    ):
        assert part in body


def test_model_card_of_local_models() -> None:
    front = yaml.safe_load(card(base="./base", targets=["/x"]).split("---\n")[1])
    assert "base_model" not in front


def test_a_recipe_cannot_end_its_fence() -> None:
    assert "````yaml\na: |\n  ```\n````\n" in card(recipe_yaml="a: |\n  ```\n")
