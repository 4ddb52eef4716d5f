"""Reads a model's vocabulary and compares it with another's: rows of embeddings are merged by id."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from ..errors import CheckpointError, counted, mib
from .files import read_bytes
from .json_file import memory_of, parse_object
from .layout import ADDED_TOKENS, TOKENIZER, TOKENIZER_CONFIG

# More are no vocabulary. The largest have 260,000 tokens in 35 MB of JSON, or 900,000 in 18 MB of pieces.
MOST_BYTES, MOST_TOKENS = 64 << 20, 1 << 20
# Of words alone, and of what is added to them.
_MOST_BYTES_OF_WORDS = 16 << 20
# Bytes that a short word and its number take.
_LINE = 120

# Tokens by id, and the ids of those whose id is another's.
_Found = tuple[dict[int, str], dict[str, int]]

#: Names of tokens that mean nothing yet. A fine-tune may give such a row a name of its own.
_PLACEHOLDER = re.compile(
    r"[<\[][^<>\[\]]*(reserved|unused|place.?holder|dummy)[^<>\[\]]*[>\]]", re.IGNORECASE
)


class Vocabulary(NamedTuple):
    """A model's tokens by id.

    Attributes:
        model: the model's name, for messages.
        tokens: by id.
        kind: "" if the ids are rows of the model and the tokens are text; else the name of a file whose ids the model
            shifts or whose tokens are bytes. These compare with those of another such file alone.
        shared: more tokens, whose ids are those of others, by text.
    """

    model: str
    tokens: dict[int, str]
    kind: str = ""
    shared: Mapping[str, int] = MappingProxyType({})

    def ids(self) -> dict[str, int]:
        """Return the id of each token. One that stands at two has the later one, as readers of vocabularies do."""
        return dict(self.shared) | {token: index for index, token in self.tokens.items()}

    def find_difference(self, other: Vocabulary) -> str | None:
        """Return, in words, which tokens only one of the two models has; None if there are none."""
        if self.kind != other.kind:
            return None
        for one, two in ((other, self), (self, other)):
            if extra := one.tokens.keys() - two.tokens.keys():
                first, some = min(extra), counted(len(extra), "token")
                return f"{one.model} alone has {some}, {one.tokens[first]!r:.80} (id {first}) among them"
        return None


class MergedRows:
    """The token of each row of merged embeddings, over several models whose ids compare.

    `rows`: how many there are; None: not known. A token that only some of the models have is no conflict, nor is
    another name for a placeholder.
    """

    def __init__(self, rows: int | None) -> None:
        self._rows = math.inf if rows is None else rows
        self._first: Vocabulary | None = None  # not copied: it may have a million tokens
        # Token and model of ids that mean nothing in the first.
        self._later: dict[int, tuple[str, str]] = {}
        self._ids: dict[str, int] = {}

    def add(self, vocabulary: Vocabulary) -> str | None:
        """Add a model's tokens.

        Returns, in words, an id that means another token in a model before, or a token that has another id there;
        None if there is neither.
        """
        if self._first is None:
            self._first = vocabulary
            meant = ((i, t) for i, t in vocabulary.tokens.items() if not _PLACEHOLDER.fullmatch(t))
            self._ids = {token: index for index, token in meant}
            return None
        conflict = None
        for index, token in vocabulary.tokens.items():
            if self._first.tokens.get(index) == token or _PLACEHOLDER.fullmatch(token):
                continue
            (known, _), place = self._known(index), self._ids.get(token)
            if known == token:
                continue
            if place is not None and vocabulary.tokens.get(place) == token:
                place = None  # a token of two ids, one of which the models share
            if known is None and place is None:
                self._later[index], self._ids[token] = (token, vocabulary.model), index
            elif conflict is None and min(index, index if place is None else place) < self._rows:
                conflict = self._describe(vocabulary.model, index, token, place)
        return conflict

    def _known(self, index: int) -> tuple[str | None, str]:
        """Return the token of an id and the first model that has it; (None, "") if it means nothing yet."""
        assert self._first is not None
        token = self._first.tokens.get(index)
        if token is not None and not _PLACEHOLDER.fullmatch(token):
            return token, self._first.model
        return self._later.get(index, (None, ""))

    def _describe(self, model: str, index: int, token: str, place: int | None) -> str:
        if place is not None:
            return f"token {token!r:.80} has id {place} in {self._known(place)[1]} and {index} in {model}"
        known, other = self._known(index)
        return f"id {index} is token {known!r:.80} in {other} and {token!r:.80} in {model}"


def read_vocabulary(model: str, path: Path, max_memory: int | None = None) -> Vocabulary | None:
    """Return the vocabulary of `model`, in `path`; None if it has none of a known format.

    Raises CheckpointError, also for a file that takes more than `max_memory` bytes as objects (None: any may).
    """
    for pattern, (read, apart) in _READERS.items():
        file = _find(path, pattern)
        if file is not None:
            name = file.name
            try:
                most = _MOST_BYTES_OF_WORDS if read in (_of_json, _of_lines) else MOST_BYTES
                text = read_bytes(file, most)
                if max_memory is not None:
                    _check_memory(file, text, read in (_of_lines, _of_tiktoken), max_memory)
                found = read(text, str(file))
                tokens, shared = found if isinstance(found, tuple) else (found, {})
                del text
                if name != TOKENIZER:
                    tokens |= _added(path)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"{file}: not a tokenizer: no vocabulary in it") from error
            if len(tokens) > MOST_TOKENS:
                raise CheckpointError(f"{file}: more than {MOST_TOKENS} tokens are no vocabulary")
            pairs = chain(tokens.items(), ((index, token) for token, index in shared.items()))
            if not all(type(i) is int and i >= 0 and isinstance(token, str) for i, token in pairs):
                raise CheckpointError(
                    f"{file}: not a tokenizer: its vocabulary maps no ids to tokens"
                )
            return Vocabulary(model, tokens, pattern if apart else "", shared)
    return None


def _find(path: Path, pattern: str) -> Path | None:
    if "*" not in pattern:
        return path / pattern if (path / pattern).exists() else None
    return min((f for f in path.glob(pattern) if not f.name.startswith(".")), default=None)


def tokenizer_digest(path: Path) -> bytes | None:
    """Return a digest of the tokenizer.json at `path`; None if there is none. Raises CheckpointError.

    Models have the same one as a rule, and 7 MB of JSON need not be parsed to see it.
    """
    file = path / TOKENIZER
    return sha256(read_bytes(file, MOST_BYTES)).digest() if file.exists() else None


def _check_memory(file: Path, text: bytes, of_lines: bool, max_memory: int) -> None:
    """Raise CheckpointError if what is made of a file's content may take more than `max_memory` bytes."""
    least = memory_of(text) + of_lines * text.count(b"\n") * _LINE
    if least > max_memory:
        raise CheckpointError(
            f"{file}: --max-memory {max_memory >> 20} MiB is too little to read it: that may take {mib(least)}"
        )


def _of_tokenizer(text: bytes, where: str) -> _Found:
    data = parse_object(text, where, max_memory=None)
    vocab = data["model"]["vocab"]
    # A Unigram model lists (token, score); a token's id is its place in the list.
    tokens, shared = (
        _by_id(vocab)
        if isinstance(vocab, dict)
        else ({index: token for index, (token, _) in enumerate(vocab)}, {})
    )
    return tokens | {
        token["id"]: token["content"] for token in data.get("added_tokens", ())
    }, shared


def _of_json(text: bytes, where: str) -> _Found:
    return _by_id(parse_object(text, where))


def _by_id(vocab: dict[str, int]) -> _Found:
    """Return the tokens by id, and those whose id is another's."""
    tokens = {index: token for token, index in vocab.items()}
    if len(tokens) == len(vocab):
        return tokens, {}
    return tokens, {token: index for token, index in vocab.items() if tokens[index] != token}


def _of_lines(text: bytes, where: str) -> dict[int, str]:
    if text.count(b"\n") > MOST_TOKENS:
        raise CheckpointError(f"{where}: more than {MOST_TOKENS} lines are no vocabulary")
    # Not all decoded at once: one letter of an ancient script makes each take four bytes.
    lines = io.BytesIO(text.rstrip(b"\r\n"))
    return {i: line.rstrip(b"\r\n").decode("utf-8", "replace") for i, line in enumerate(lines)}


def _of_pieces(text: bytes, where: str) -> dict[int, str]:
    """The pieces of a sentencepiece model: field 1 of the message, whose field 1 is the text."""
    tokens: dict[int, str] = {}
    for field, piece in _fields(memoryview(text)):
        if field == 1:
            content = next((bytes(value) for number, value in _fields(piece) if number == 1), b"")
            tokens[len(tokens)] = content.decode("utf-8", "replace")
        if len(tokens) > MOST_TOKENS:
            raise CheckpointError(f"{where}: more than {MOST_TOKENS} pieces are no vocabulary")
    return tokens


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield (number, bytes) of each field of a protobuf message; of numbers no bytes. Raises ValueError, IndexError.

    Source: https://protobuf.dev/programming-guides/encoding/
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a varint has at most 10 bytes")

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            varint()
            size = 0
        else:
            size = {1: 8, 2: -1, 5: 4}[kind]
        if size < 0:
            size = varint()
        if size > len(message) - at:
            raise ValueError("a field ends after its message")
        yield number, message[at : at + size]
        at += size


def _of_tiktoken(text: bytes, where: str) -> dict[int, str]:
    """Lines of a token's bytes in base64 and its id. The bytes are given as characters of the same numbers."""
    if text.count(b"\n") > MOST_TOKENS:
        raise CheckpointError(f"{where}: more than {MOST_TOKENS} lines are no vocabulary")
    pairs = (line.split() for line in io.BytesIO(text) if line.strip())
    return {int(index): _of_base64(token) for token, index in pairs}


def _of_tekken(text: bytes, where: str) -> dict[int, str]:
    """Mistral's: special tokens come first, and of the rest as many count as the vocabulary's size leaves.

    Source: https://github.com/mistralai/mistral-common, tokens/tokenizers/tekken.py
    """
    data = parse_object(text, where, max_memory=None)
    config, special = data["config"], data.get("special_tokens") or []
    first, size = config.get("default_num_special_tokens"), config.get("default_vocab_size")
    first = len(special) if first is None else first
    if not 0 <= first <= (first if size is None else size):
        raise ValueError("not the sizes of a vocabulary")
    kept = data["vocab"] if size is None else data["vocab"][: size - first]
    tokens = {first + i: _of_base64(entry["token_bytes"]) for i, entry in enumerate(kept)}
    return tokens | {entry["rank"]: entry["token_str"] for entry in special}


def _of_base64(token: str | bytes) -> str:
    return base64.b64decode(token, validate=True).decode("latin-1")


def _added(path: Path) -> dict[int, str]:
    """The tokens that are added to a vocabulary which is no tokenizer.json."""
    tokens: dict[int, str] = {}
    if (path / ADDED_TOKENS).exists():
        added, _ = _of_json(
            read_bytes(path / ADDED_TOKENS, _MOST_BYTES_OF_WORDS), str(path / ADDED_TOKENS)
        )
        tokens |= added
    if (path / TOKENIZER_CONFIG).exists():
        config = parse_object(
            read_bytes(path / TOKENIZER_CONFIG, _MOST_BYTES_OF_WORDS), str(path / TOKENIZER_CONFIG)
        )
        decoder = config.get("added_tokens_decoder") or {}
        tokens |= {int(index): token["content"] for index, token in decoder.items()}
    return tokens


# Files with the ids of all tokens, best first: how they are read, and whether they compare with their own kind alone.
_READERS: dict[str, tuple[Callable[[bytes, str], dict[Any, Any] | _Found], bool]] = {
    TOKENIZER: (_of_tokenizer, False),
    "vocab.json": (_of_json, False),
    "vocab.txt": (_of_lines, False),
    "tokenizer.model": (_of_pieces, False),
    "spiece.model": (_of_pieces, False),
    "spm.model": (_of_pieces, False),
    "sentencepiece.bpe.model": (_of_pieces, True),
    "tekken.json": (_of_tekken, True),
    "*.tiktoken": (_of_tiktoken, True),
}
#: Names of files that hold a vocabulary.
VOCABULARIES = tuple(_READERS)
