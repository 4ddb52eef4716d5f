"""Which token an id is: vocabularies of every format, conflicts between two of them."""

from __future__ import annotations

import io
import tracemalloc
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from fuseo1_kernels.checkpoint import vocabulary
from fuseo1_kernels.checkpoint.vocabulary import MergedRows, Vocabulary, read_vocabulary
from fuseo1_kernels.errors import CheckpointError
from support.checkpoint_files import write_json

TOKENS = {0: "a", 1: "b", 2: "eos"}


def tokenizer(vocab: Any, **added: int) -> dict[str, Any]:
    tokens = [{"content": token, "id": index} for token, index in added.items()]
    return {"tokenizer.json": {"model": {"vocab": vocab}, "added_tokens": tokens}}


def write(path: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            (path / name).write_bytes(content)
        else:
            write_json(path / name, content)
    return path


def pieces(*texts: str) -> bytes:
    """A sentencepiece model as its own library would store it: pieces, then fields that do not matter."""
    message = b""
    for text in texts:
        piece = (
            b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x15\x00\x00\x80\xbf\x18\x01"
        )
        message += b"\x0a" + bytes([len(piece)]) + piece
    return message + b"\x12\x02\x18\x01" + b"\x50\xac\x02" + b"\x59" + bytes(8)


def tekken(
    *texts: str, special: dict[int, str], first: int | None = None, size: int | None = None
) -> dict[str, Any]:
    """Mistral's file, with what matters of it."""
    vocab = [
        {"rank": i, "token_bytes": b64encode(t.encode()).decode(), "token_str": t}
        for i, t in enumerate(texts)
    ]
    specials = [{"rank": rank, "token_str": t, "is_control": True} for rank, t in special.items()]
    config = {"default_num_special_tokens": first, "default_vocab_size": size}
    return {"config": config, "vocab": vocab, "special_tokens": specials}


DECODER = {"added_tokens_decoder": {"2": {"content": "eos", "special": True}}}


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (tokenizer({"a": 0, "b": 1}, eos=2), ""),
        (tokenizer([["a", -1.5], ["b", -2]], eos=2), ""),
        (tokenizer({"a": 0, "b": 1, "old": 2}, eos=2), ""),
        ({"vocab.json": {"a": 0, "b": 1}, "added_tokens.json": {"eos": 2}}, ""),
        ({"vocab.txt": b"a\nb\neos\n"}, ""),
        ({"vocab.txt": b"a\r\nb\r\n", "tokenizer_config.json": DECODER}, ""),
        ({"tokenizer.model": pieces("a", "b", "eos")}, ""),
        ({"spiece.model": pieces("a", "b"), "added_tokens.json": {"eos": 2}}, ""),
        ({"sentencepiece.bpe.model": pieces("a", "b", "eos")}, "sentencepiece.bpe.model"),
        ({"qwen.tiktoken": b"YQ== 0\nYg== 1\n\n", "tokenizer_config.json": DECODER}, "*.tiktoken"),
        ({"tekken.json": tekken("a", "b", special={2: "eos"}, first=0)}, "tekken.json"),
        ({"tekken.json": tekken("b", special={0: "a", 2: "eos"}, first=1)}, "tekken.json"),
        ({"tekken.json": tekken("b", "eos", "padding", special={0: "a"}, size=3)}, "tekken.json"),
    ],
)
def test_formats(files: dict[str, Any], kind: str, tmp_path: Path) -> None:
    assert read_vocabulary("m", write(tmp_path, files)) == Vocabulary("m", TOKENS, kind)


@pytest.mark.peer
def test_pieces_that_sentencepiece_wrote(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat \u2581 \u00e9"] * 20),
        model_writer=out,
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    found = read_vocabulary("m", write(tmp_path, {"tokenizer.model": out.getvalue()}))
    library = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    assert found is not None
    assert found.tokens == {i: library.id_to_piece(i) for i in range(library.get_piece_size())}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json": {}},
        {"tokenizer.json": {"model": []}},
        *(tokenizer(vocab) for vocab in (3, [1], {"a": "0"}, {"a": [0]}, {"a": True}, {"a": -1}, [[1, 2]])),
        tokenizer({"a": 1, "b": 1.0, "c": 1}),
        {"tokenizer.json": b"\xff"},
        {"vocab.json": b"[]"},
        {"vocab.json": {"a": 0.5}},
        {"vocab.txt": b"a\nb", "tokenizer_config.json": {"added_tokens_decoder": {"x": {"content": "a"}}}},
        {"vocab.txt": b"a\nb", "tokenizer_config.json": {"added_tokens_decoder": [1]}},
        {"vocab.txt": b"a\n" * (2 << 20)},
        *({"tokenizer.model": pieces("a", "b")[:n]} for n in (1, 5, 13)),
        *({"tokenizer.model": b} for b in (b"\xff" * 12, b"\x0b", b"\x0a\x7f", b"\x0a\x02\x0a\x7f")),
        {"tokenizer.model": b"\x0a\x00" * (2 << 20)},
        *({"x.tiktoken": text} for text in (b"a", b"a b c", b"YQ== x", b"Y! 0", b"\xff 0")),
        {"x.tiktoken": b"YQ== 0\n" * (2 << 20)},
        *({"tekken.json": data} for data in ({}, b"[]", {"config": {}, "vocab": 5})),
        {"tekken.json": tekken("a", special={}, first=-1)},
        {"tekken.json": tekken("a", special={}, first=5, size=3)},
    ],
    ids=lambda files: f"{files!r:.40}",
)  # fmt: skip
def test_damaged(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_vocabulary("m", write(tmp_path, files))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "files",
    [
        tokenizer({"a": 0, "b": 1}, eos=2),
        {"vocab.json": {"a": 0, "b": 1, "eos": 2}},
        {"vocab.txt": b"a\nb\neos\n"},
        {"vocab.txt": b"a\nb\n", "tokenizer_config.json": DECODER},
        {"tokenizer.model": pieces("a", "b", "eos")},
        {"tekken.json": tekken("a", "b", "eos", special={})},
        {"qwen.tiktoken": b"YQ== 0\nYg== 1\nYw== 2\n"},
    ],
)
def test_too_large(files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, files)
    monkeypatch.setattr(vocabulary, "MOST_TOKENS", 3)
    assert read_vocabulary("m", tmp_path)
    monkeypatch.setattr(vocabulary, "MOST_TOKENS", 2)
    with pytest.raises(CheckpointError, match=r"more than 2 \w+ are no vocabulary"):
        read_vocabulary("m", tmp_path)


@pytest.mark.parametrize("name", ["vocab.txt", "vocab.json", "tokenizer_config.json"])
def test_words_that_are_too_large(name: str, tmp_path: Path) -> None:
    write(tmp_path, {} if name == "vocab.json" else {"vocab.txt": b"a"})
    write(tmp_path, {name: b"{}" + b" " * ((16 << 20) - 2)})
    assert read_vocabulary("m", tmp_path)
    write(tmp_path, {name: b"{}" + b" " * ((16 << 20) - 1)})
    with pytest.raises(CheckpointError, match=f"{name}: has more than"):
        read_vocabulary("m", tmp_path)


@pytest.mark.parametrize(
    "piece", ["[[]],", "0,", '"",', "{},", '{"":{}},', "1.5,", '"\\ud83d\\ude00",']
)
def test_memory(piece: str, tmp_path: Path) -> None:
    """As objects a file takes less than what is counted, and none are made if that is too much."""
    text = '{"model":{"vocab":{}},"x":[' + piece * 30_000 + "0]}"
    write(tmp_path, {"tokenizer.json": text.encode()})
    with pytest.raises(CheckpointError, match="--max-memory 0 MiB is too little") as caught:
        read_vocabulary("m", tmp_path, 1)
    counted = int(str(caught.value).split()[-2]) << 20
    tracemalloc.start()
    assert read_vocabulary("m", tmp_path, counted) is not None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < counted


def test_none(tmp_path: Path) -> None:
    assert (
        read_vocabulary("m", write(tmp_path, {"tokenizer.other": {}, ".x.tiktoken": b""})) is None
    )


@pytest.mark.parametrize(
    "other",
    [
        TOKENS,
        {0: "a"},
        TOKENS | {7: "think"},
        {0: "a", 1: "b", 9: "renamed"},  # an id that no row has
        {0: "a", 1: "b", 3: "<|reserved_special_token_0|>"},
        {3: "<\uff5cplace\u2581holder\u2581no\u25810\uff5c>"},
        {0: "a", 1: "b", 2: "eos", 4: "mine"},  # the reference's is a placeholder
        {5: "twice", 6: "twice"},
    ],
)
def test_no_conflict(other: dict[int, str]) -> None:
    reference = Vocabulary(
        "x", TOKENS | {3: "bos", 4: "[unused1]", 5: "twice", 6: "twice", 9: "far"}
    )
    for first, second in ((reference, Vocabulary("y", other)), (Vocabulary("y", other), reference)):
        rows = MergedRows(8)
        assert rows.add(first) is None and rows.add(second) is None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({0: "b", 1: "a"}, "token 'b' has id 1 in x and 0 in y"),
        ({0: "a", 5: "eos"}, "token 'eos' has id 2 in x and 5 in y"),
        ({0: "a", 1: "b", 2: "tool"}, "id 2 is token 'eos' in x and 'tool' in y"),
    ],
)
def test_conflict(other: dict[int, str], words: str) -> None:
    rows = MergedRows(None)
    assert rows.add(Vocabulary("x", TOKENS)) is None
    assert rows.add(Vocabulary("y", other)) == words


@pytest.mark.parametrize("first", [{}, {7: "<|reserved_special_token_0|>"}])
@pytest.mark.parametrize(
    ("second", "third", "words"),
    [
        ("<think>", {7: "<tool>"}, "id 7 is token '<think>' in y and '<tool>' in z"),
        ("<think>", {8: "<think>"}, "token '<think>' has id 7 in y and 8 in z"),
        ("<think>", {7: "<think>"}, None),
        ("[unused7]", {7: "<tool>"}, None),
    ],
)
def test_conflict_of_later_models(
    first: dict[int, str], second: str, third: dict[int, str], words: str | None
) -> None:
    """Of tokens that the first model lacks, or has a placeholder for."""
    rows = MergedRows(9)
    assert rows.add(Vocabulary("x", TOKENS | first)) is None
    assert rows.add(Vocabulary("y", TOKENS | {7: second})) is None
    assert rows.add(Vocabulary("z", TOKENS | third)) == words


@pytest.mark.parametrize(
    ("token", "means_nothing"),
    [
        *((f"<|reserved_special_token_{n}|>", True) for n in (0, 247)),
        ("<\uff5cplace\u2581holder\u2581no\u25811\uff5c>", True),
        *(
            (t, True)
            for t in (
                "[unused12]",
                "<unused7>",
                "[UNUSED_TOKEN_3]",
                "<|dummy_9|>",
                "<|placeholder1|>",
            )
        ),
        *((t, False) for t in ("reserved", "unused", "\u0120dummy", "dummyland", "placeholder")),
        *((t, False) for t in ("<reserved", "unused]", "<b> reserved <i>", "<|think|>")),
    ],
)
def test_placeholders(token: str, means_nothing: bool) -> None:
    rows = MergedRows(None)
    assert rows.add(Vocabulary("x", {3: token})) is None
    assert (rows.add(Vocabulary("y", {3: "other"})) is None) == means_nothing


@pytest.mark.parametrize(("index", "rows", "met"), [(5, 6, True), (2, 3, True), (5, 2, False)])
def test_conflict_of_rows_that_are_cropped(index: int, rows: int, met: bool) -> None:
    """A token of ids 2 and 5: one of the two rows is enough to mix it with another."""
    merged = MergedRows(rows)
    assert merged.add(Vocabulary("x", {index: "eos"})) is None
    assert bool(merged.add(Vocabulary("y", {7 - index: "eos"}))) == met


def test_difference() -> None:
    reference = Vocabulary("x", TOKENS)
    assert reference.find_difference(Vocabulary("y", TOKENS)) is None
    more = reference.find_difference(Vocabulary("y", TOKENS | {5: "t", 4: "s"}))
    assert more == "y alone has 2 tokens, 's' (id 4) among them"
    assert reference.find_difference(Vocabulary("y", {0: "a", 1: "b"})) == (
        "x alone has 1 token, 'eos' (id 2) among them"
    )
