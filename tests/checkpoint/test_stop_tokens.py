"""Whether generation stops where the tokenizer ends a text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fuseo1_kernels.checkpoint.stop_tokens import find_stop_mismatch, find_turn_end_mismatch
from fuseo1_kernels.checkpoint.vocabulary import Vocabulary

TOKENS = Vocabulary("m", {0: "a", 1: "end", 2: "turn"})


def find(files: dict[str, Any], vocabulary: Vocabulary | None = TOKENS) -> str | None:
    data = {f"{name}.json": json.dumps(content).encode() for name, content in files.items()}
    return find_stop_mismatch(data, vocabulary)


@pytest.mark.parametrize("end", ["end", {"content": "end", "lstrip": False}])
@pytest.mark.parametrize("settings", ["generation_config", "config"])
@pytest.mark.parametrize(
    ("stops", "stopped"), [(1, True), ([2, 1], True), (2, False), ([0], False)]
)
def test_stops(end: Any, settings: str, stops: Any, stopped: bool) -> None:
    said = find({"tokenizer_config": {"eos_token": end}, settings: {"eos_token_id": stops}})
    assert (said is None) == stopped
    if said:
        assert said.startswith(f"{settings}.json stops at") and "'end', id 1" in said


def test_settings_of_generation_win() -> None:
    files: dict[str, Any] = {
        "config": {"eos_token_id": 1},
        "tokenizer_config": {"eos_token": "end"},
    }
    assert find(files) is None
    assert "has no eos_token_id" in str(find(files | {"generation_config": {}}))


@pytest.mark.parametrize("tokenizer", [{}, {"eos_token": None}, {"eos_token": "lost"}])
def test_nothing_is_known(tokenizer: dict[str, Any]) -> None:
    files = {"generation_config": {"eos_token_id": 9}, "tokenizer_config": tokenizer}
    assert find(files) is None
    assert find(files | {"tokenizer_config": {"eos_token": "end"}}, None) is None
    assert find({"config": {}, "tokenizer_config": {"eos_token": "end"}}) is None  # an encoder


@pytest.mark.parametrize(
    ("stops", "end", "words"),
    [
        ([1, 2], "turn", None),
        (2, "turn", None),
        (1, "turn", "ends a turn with 'turn', id 2; config.json stops at [1]"),
        (2, "<|im_end|>", "ends a turn with '<|im_end|>', which is not a token here"),
    ],
)
def test_the_end_of_a_turn(stops: Any, end: str, words: str | None) -> None:
    files = {"config.json": json.dumps({"eos_token_id": stops}).encode()}
    said = find_turn_end_mismatch(files, TOKENS, end)
    assert (said is None) == (words is None) and str(words) in str(said)
    assert find_turn_end_mismatch(files, None, end) is None
