"""Damaged small files are copied as they are, or refused with one message."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuseo1_kernels.config.load import parse_config
from fuseo1_kernels.engine.dry_run import DryRun, dry_run
from fuseo1_kernels.errors import MergeError
from support.checkpoint_files import single_model, write_json
from support.headers import layered, tensors
from support.mutations import JSON_PIECES, JSON_VALUES, damaged_json, spliced

CARD = "---\nlicense: other\nlicense_name: x\ntags: [a]\n---\n# A model\n"
PIECES = b"\x0a\x0a\x0a\x01a\x15\0\0\0\0\x18\x01" * 2
FILES: dict[str, Any] = {
    "tokenizer.json": {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "c"}]},
    "tokenizer_config.json": {"eos_token": {"content": "c"}, "added_tokens_decoder": {"2": {"content": "c"}},
                              "auto_map": {"AutoTokenizer": ["own.T", None]}, "chat_template": [{"name": "default"}]},
    "generation_config.json": {"eos_token_id": [2]},
    "config.json": {"eos_token_id": 2, "auto_map": {"AutoModel": "own.M"}, "quantization_config": {},
                    "rope_scaling": {"rope_type": "x"}, "text_config": {"vocab_size": 3}},
}  # fmt: skip
DAMAGED: list[st.SearchStrategy[tuple[str, bytes]]] = [
    *(st.tuples(st.just(n), damaged_json(tree, JSON_VALUES)) for n, tree in FILES.items()),
    st.tuples(st.just("tokenizer.model"), spliced(PIECES, JSON_PIECES)),
    st.tuples(st.just("README.md"), spliced(CARD.encode(), JSON_PIECES)),
    st.tuples(st.just("own.py"), spliced(b"from .x import (a,\nb)\n", JSON_PIECES)),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    for name in ("base", "left"):
        single_model(home / name, tensors(layered(2, vocab=3)))
    return home


def write(home: Path, pieces: bool) -> None:
    for name in ("base", "left"):
        for file in (home / name).iterdir():
            if file.suffix != ".safetensors":
                file.unlink()
        for file_name, tree in FILES.items():
            write_json(home / name / file_name, tree)
        (home / name / "README.md").write_text(CARD)
        (home / name / "own.py").write_text("from .x import y")
        if pieces:
            (home / name / "tokenizer.json").unlink()
            (home / name / "tokenizer.model").write_bytes(PIECES)


def plan(home: Path, lender: str) -> DryRun:
    names = {name: str(home / name) for name in ("base", "left")}
    config = {"models": [{"model": names["left"]}], "base_model": names["base"]}
    keys = {"tokenizer_source": names[lender], "chat_template": "auto", "merge_method": "sce"}
    return dry_run(parse_config(config | keys), None)


@pytest.mark.parametrize("pieces", [False, True])
def test_undamaged(pieces: bool, home: Path) -> None:
    write(home, pieces)
    planned = plan(home, "left")
    assert planned.problems == ()
    [note] = planned.notes
    assert "quantization_config" in note


@settings(max_examples=100, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    damaged=st.one_of(DAMAGED),
    model=st.sampled_from(["base", "left"]),
    lender=st.sampled_from(["base", "left"]),
    pieces=st.booleans(),
)
def test_damaged(
    damaged: tuple[str, bytes], model: str, lender: str, pieces: bool, home: Path
) -> None:
    write(home, pieces)
    name, content = damaged
    (home / model / name).write_bytes(content)
    try:
        planned = plan(home, lender)
    except MergeError as error:
        said = [str(error)]
    else:
        said = [*planned.problems, *planned.notes]
    for text in said:
        assert text.replace("\n", "").isprintable() and len(text) < 2000


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "added_tokens.json"]
)
def test_json_that_takes_much_memory_is_refused(name: str, home: Path) -> None:
    """By what is in its text: 24 MB here, and no object is made of it."""
    write(home, pieces=True)
    (home / "base" / name).write_bytes(b'{"auto_map":[' + b"[[]]," * 5_000_000 + b"0]}")
    tracemalloc.start()
    with pytest.raises(MergeError, match=f"base.*absurdly large|{name}: has more than"):
        found = plan(home, "base")
        raise MergeError(*found.problems)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150_000_000
