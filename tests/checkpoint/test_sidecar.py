"""The small files beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fuseo1_kernels.checkpoint.config_sections import TEXT_CONFIGS
from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.checkpoint.sidecar import Sidecars, sidecar_files
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
            (path / file).parent.mkdir(exist_ok=True)
            if isinstance(content, str):
                (path / file).write_text(content, encoding="utf-8")
            else:
                write_json(path / file, content)
        return open_source(str(path))

    return model


def sidecars(base: Source, **changes: Any) -> Sidecars:
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


def files(base: Source, **changes: Any) -> dict[str, bytes]:
    return sidecars(base, **changes).files


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


@pytest.mark.parametrize("path", TEXT_CONFIGS)
def test_vocabulary_of_a_model_for_several_kinds_of_input(path: tuple[str, ...], make: Any) -> None:
    def config(**text: int) -> dict[str, Any]:
        inner: dict[str, Any] = {"x": 1, **text}
        for key in reversed(path):
            inner = {key: inner}
        return {**inner, "audio_config": {"vocab_size": 3}}

    base = make("base", **config(vocab_size=7, eos_token_id=1))
    lender = make("lender", TOKENIZER, **config(vocab_size=9, eos_token_id=2))
    written = json.loads(files(base, tokenizer=lender, vocab_size=5)["config.json"])
    assert written.items() >= config(vocab_size=5, eos_token_id=2).items()
    assert "vocab_size" not in written
    assert base.config.items() >= config(vocab_size=7, eos_token_id=1).items()
    base = make("both", vocab_size=7, text_config={"vocab_size": 7})
    written = json.loads(files(base, vocab_size=5)["config.json"])
    assert written["vocab_size"] == written["text_config"]["vocab_size"] == 5


def test_vocabulary_sizes_at_any_depth(make: Any) -> None:
    """All that state the rows before the crop; others are those of something else."""
    thinker = {"text_config": {"vocab_size": 7}, "audio_config": {"vocab_size": 3}}
    nested = {"thinker_config": thinker, "towers": [{"vocab_size": 7}, {"vocab_size": [7]}]}
    base = make("base", **nested)
    written = json.loads(files(base, vocab_size=5, uncropped={7})["config.json"])
    assert written["thinker_config"] == thinker | {"text_config": {"vocab_size": 5}}
    assert written["towers"] == [{"vocab_size": 5}, {"vocab_size": [7]}]
    assert "vocab_size" not in written
    assert base.config == {"num_hidden_layers": 2} | nested


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"bits": 4}},
        {"quantization_config": None},
        {"text_config": {"quantization_config": {"bits": 4}}},
        {"towers": [{"vision_config": {"quantization_config": {}}}]},
    ],
)
def test_quantization_config(config: dict[str, Any], make: Any) -> None:
    base = make("base", **config)
    made = sidecars(base)
    assert b"quantization_config" not in made.files["config.json"]
    assert json.loads(made.files["config.json"]).keys() >= config.keys() - {"quantization_config"}
    assert made.notes == [
        f"model {base.name}: quantization_config left out of config.json: the merged weights are not"
        " quantized"
    ]


def test_generation_config_is_copied_byte_for_byte(make: Any) -> None:
    base = make("base", {"generation_config.json": '{"top_p":   0.8}'})
    assert files(base)["generation_config.json"] == b'{"top_p":   0.8}'


def test_nothing_there_nothing_written(make: Any) -> None:
    base = make("base")
    assert files(base).keys() == {"config.json"}
    (base.path / "config.json").unlink()
    made = sidecars(open_source(str(base.path)))
    assert made.files == {}
    [note] = made.notes
    assert note.startswith(f"model {base.name}: has no config.json") and "not load it" in note


# --- what goes along ---------------------------------------------------------------------


def test_everything_but_weights_goes_along(make: Any) -> None:
    """The tokenizer's files and settings from the lender, code with what names it, the rest from the base."""
    base = make(
        "base",
        {
            **TOKENIZER,
            "preprocessor_config.json": {"auto_map": {"AutoProcessor": "processing_x.P"}},
            "processing_x.py": "from .shared import s",
            "shared.py": "base's",
            "modeling_x.py": "",
            "tokenization_x.py": "from .shared import s",
            "setup.py": "",
            "1_Pooling/config.json": {},
            "generation_config.json": {"of": "base"},
            "pytorch_model.bin": "",
        },
        auto_map={"AutoModel": "modeling_x.M"},
        eos_token_id=1,
        bos_token_id=2,
    )
    lender = make(
        "lender",
        {
            **TOKENIZER,
            "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["tokenization_y.T", None]}},
            "tokenization_y.py": "lender's",
            "additional_chat_templates/rag.jinja": "rag",
            "generation_config.json": {"of": "lender"},
            "preprocessor_config.json": {"of": "lender"},
        },
        eos_token_id=[3, 4],
    )
    made = sidecars(base, tokenizer=lender)
    of_base = ["1_Pooling/config.json", "preprocessor_config.json"]
    of_base += ["modeling_x.py", "processing_x.py", "shared.py"]
    of_lender = [*TOKENIZER, "tokenization_y.py", "additional_chat_templates/rag.jinja"]
    of_lender += ["generation_config.json"]
    assert made.files.keys() == {"config.json", *of_base, *of_lender}
    for source, names in ((base, of_base), (lender, of_lender)):
        for name in names:
            assert made.files[name] == (source.path / name).read_bytes()
    config = json.loads(made.files["config.json"])
    assert config["eos_token_id"] == [3, 4] and config["bos_token_id"] == 2
    [note] = made.notes
    assert note == (
        f"model {base.name}: does not go along: pytorch_model.bin (weights or a trainer's state),"
        " setup.py (Python code that no auto_map names),"
        " tokenization_x.py (Python code that no auto_map names)"
    )
    assert "tokenizer.json" not in sidecars(base, copy_tokenizer=False).files
    (lender.path / "generation_config.json").unlink()
    made = sidecars(base, tokenizer=open_source(str(lender.path)))
    assert json.loads(made.files["generation_config.json"]) == {"of": "base"}


def test_what_does_not_go_along_of_the_tokenizers_model(make: Any) -> None:
    """The rest of it is not missed."""
    rest = {"pytorch_model.bin": "", "shared.py": "", "LICENSE": ""}
    base = make("base", {"shared.py": ""}, auto_map={"AutoModel": "shared.M"})
    lender = make("lender", {**TOKENIZER, **rest, "vocab.pkl": "", "tokenization_y.py": ""})
    (lender.path / "generation_config.json").write_bytes(bytes((64 << 20) + 1))
    [note] = sidecars(base, tokenizer=lender).notes
    assert note == (
        f"model {lender.name}: does not go along: generation_config.json (more than {64 << 20} bytes),"
        " tokenization_y.py (Python code that no auto_map of its tokenizer names),"
        " vocab.pkl (weights or a trainer's state)"
    )


def test_a_long_list_of_what_does_not_go_along(make: Any) -> None:
    base = make("base", {f"\n{number:02}.bin": "" for number in range(14)})
    [note] = sidecars(base).notes
    assert "'\\n00.bin'" in note and "'\\n09.bin'" in note and "10.bin" not in note
    assert note.endswith(" and 4 more") and note.isprintable()


# --- the tokenizer -----------------------------------------------------------------------


def test_tokenizer_is_copied_byte_for_byte(make: Any) -> None:
    base = make("base", {**TOKENIZER, "merges.txt": "a b\r\n", "README.md": "no", ".x": "no"})
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


@pytest.mark.parametrize("file", ["tokenizer_config.json", "1_Pooling/config.json"])
def test_a_damaged_config_that_names_code(file: str, make: Any) -> None:
    base = make("base", {**TOKENIZER, file: '{"auto_map": '})
    reason = rf"{base.path / file} \(read for its auto_map\): not valid JSON"
    with pytest.raises(CheckpointError, match=reason):
        files(base)


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
