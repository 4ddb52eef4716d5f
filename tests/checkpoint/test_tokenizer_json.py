"""Tokens added to a tokenizer's files and left out of them, as `tokenizers` reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from fuseo1_kernels.checkpoint.tokenizer_json import (
    PLAIN,
    TokenizerChange,
    change_tokenizer,
    read_added_tokens,
)
from fuseo1_kernels.errors import CheckpointError

END = {"id": 4, "content": "<end>", **PLAIN, "special": True}
WORDS = {"a": 0, "b": 1, "ab": 2, "abb": 3}
MODELS: dict[str, dict[str, Any]] = {
    "BPE": {"vocab": WORDS, "merges": [["a", "b"], ["ab", "b"]]},
    "WordPiece": {
        "vocab": WORDS,
        "unk_token": "a",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 9,
    },
    "WordLevel": {"vocab": WORDS, "unk_token": "a"},
    "Unigram": {"vocab": [[token, -1.0] for token in WORDS], "unk_id": 0},
}


def files(kind: str, **config: Any) -> dict[str, bytes]:
    data = {"version": "1.0", "model": {"type": kind, **MODELS[kind]}, "added_tokens": [END]}
    return {
        "tokenizer.json": json.dumps(data).encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "vocab.json": json.dumps(WORDS).encode(),
        "chat_template.jinja": b"{{ it }}",
    }


@pytest.mark.parametrize("kind", MODELS)
def test_tokens_are_added_and_left_out(kind: str) -> None:
    found = files(
        kind, eos_token="<end>", pad_token="<end>", unk_token="a", added_tokens_decoder={}
    )
    new = {i: {"content": token, **PLAIN} for i, token in ((3, "<x>"), (4, "<y>"))}
    change_tokenizer(found, Path("m"), TokenizerChange(new, {"abb", "<end>"}))
    tokenizer = Tokenizer.from_str(found["tokenizer.json"].decode())
    assert tokenizer.get_vocab() == {"a": 0, "b": 1, "ab": 2, "<x>": 3, "<y>": 4}
    assert tokenizer.encode("<y><x>").ids == [4, 3]
    config = json.loads(found["tokenizer_config.json"])
    assert config.keys() == {"unk_token", "added_tokens_decoder"}
    assert {i: t["content"] for i, t in config["added_tokens_decoder"].items()} == {
        "3": "<x>",
        "4": "<y>",
    }
    assert found.keys() == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def test_a_token_of_the_vocabulary_becomes_an_added_one() -> None:
    found = files("BPE")
    change_tokenizer(found, Path("m"), TokenizerChange({2: {"content": "ab", **PLAIN}}, ()))
    tokenizer = Tokenizer.from_str(found["tokenizer.json"].decode())
    assert tokenizer.get_vocab() == WORDS | {"<end>": 4}
    assert tokenizer.get_added_tokens_decoder().keys() == {2, 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (TokenizerChange({9: {"content": "<x>", **PLAIN}}, ()), "would get the id 5, not 9"),
        (TokenizerChange({4: {"content": "<x>", **PLAIN}}, {"a", "<end>"}), "would get the id 3, not 4"),
    ],
)  # fmt: skip
def test_ids_that_readers_would_not_give(change: TokenizerChange, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        change_tokenizer(files("BPE"), Path("m"), change)
    assert str(caught.value).startswith("m/tokenizer.json: ")


def test_a_tokenizer_without_the_file(tmp_path: Path) -> None:
    found = {"tokenizer.model": b""}
    change_tokenizer(found, tmp_path, TokenizerChange({}, {"x"}))
    assert found == {"tokenizer.model": b""}
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json, so no tokens can be added"):
        change_tokenizer(found, tmp_path, TokenizerChange({0: {"content": "x"}}, ()))


def test_added_tokens(tmp_path: Path) -> None:
    assert read_added_tokens(tmp_path) == {}
    decoder = {"4": {"content": "<end>", "special": True, "normalized": False}}
    config = json.dumps({"added_tokens_decoder": decoder})
    (tmp_path / "tokenizer_config.json").write_text(config)
    expected = PLAIN | {"special": True}
    assert read_added_tokens(tmp_path) == {"<end>": expected | {"normalized": False}}
    (tmp_path / "tokenizer.json").write_bytes(files("BPE")["tokenizer.json"])
    assert read_added_tokens(tmp_path) == {"<end>": expected}
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [3]}')
    with pytest.raises(CheckpointError, match="no added tokens in it"):
        read_added_tokens(tmp_path)
