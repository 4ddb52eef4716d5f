"""Changes a tokenizer's files: tokens that are added to tokenizer.json, and tokens that are left out of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .files import read_bytes
from .json_file import dump_object, parse_object
from .layout import ADDED_TOKENS, TOKENIZER, TOKENIZER_CONFIG
from .vocabulary import MOST_BYTES, VOCABULARIES

#: How text is matched with an added token of which no more is known, as `tokenizers` has it.
PLAIN = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": True,
    "special": False,
}
_SPECIAL_TOKENS = "special_tokens_map.json"
_DECODER = "added_tokens_decoder"


@dataclass(frozen=True)
class TokenizerChange:
    """The difference between the output's tokenizer and one model's.

    Attributes:
        added: by id, the added tokens of the output that the model has not, or not as such: keys of tokenizer.json.
        removed: the model's tokens that the output has not, as it has no rows for them.
    """

    added: Mapping[int, Mapping[str, Any]]
    removed: Collection[str]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)


def read_added_tokens(path: Path) -> dict[str, dict[str, Any]]:
    """Return how each added token of the model at `path` is matched, by its text. Raises CheckpointError."""
    name = TOKENIZER if (path / TOKENIZER).exists() else TOKENIZER_CONFIG
    if not (path / name).exists():
        return {}
    data = parse_object(read_bytes(path / name, MOST_BYTES), str(path / name), max_memory=None)
    found = data.get("added_tokens" if name == TOKENIZER else _DECODER) or []
    try:
        entries = found.values() if isinstance(found, dict) else found
        return {
            entry["content"]: {key: bool(entry.get(key, PLAIN[key])) for key in PLAIN}
            for entry in entries
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / name}: not a tokenizer: no added tokens in it") from error


def change_tokenizer(files: dict[str, bytes], model: Path, change: TokenizerChange) -> None:
    """Change the tokenizer's `files`, which are those of the model at `model`.

    Its vocabulary in other formats than tokenizer.json is left out. Without that file nothing is: its model has the
    same ids without rows. Raises CheckpointError if tokens are to be added then, or if readers would give them other
    ids.
    """
    if TOKENIZER not in files and not change.added:
        return
    if TOKENIZER not in files:
        raise CheckpointError(
            f"{model}: has no {TOKENIZER}, so no tokens can be added to its tokenizer; save it with"
            " transformers' AutoTokenizer, which makes one, or take another model's (`tokenizer: {source: MODEL}`)"
        )
    where = str(model / TOKENIZER)
    data = parse_object(files[TOKENIZER], where, max_memory=None)
    try:
        _change_model(data["model"], change.removed)
        added = {t["id"]: t for t in data.get("added_tokens") or () if _stays(t, change)}
        _check_ids(data["model"]["vocab"], added, change.added, where)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: not a tokenizer: {error!r:.80}") from error
    added |= {index: {"id": index, **entry} for index, entry in change.added.items()}
    data["added_tokens"] = [added[index] for index in sorted(added)]
    files[TOKENIZER] = dump_object(data)
    for name in [n for n in files if n in (*VOCABULARIES, "merges.txt", ADDED_TOKENS)]:
        if name != TOKENIZER:
            del files[name]
    _change_object(files, TOKENIZER_CONFIG, model, lambda c: _change_config(c, data, change))
    _change_object(files, _SPECIAL_TOKENS, model, lambda c: _without(c, change.removed))


def _stays(entry: Mapping[str, Any], change: TokenizerChange) -> bool:
    return entry["content"] not in change.removed


def _change_model(model: dict[str, Any], removed: Collection[str]) -> None:
    """Leave tokens out of a tokenizer.json's model: their ids are the last ones."""
    if not removed:
        return
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {token: index for token, index in vocab.items() if token not in removed}
    else:
        model["vocab"] = [entry for entry in vocab if entry[0] not in removed]
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if _has_all(merge, removed)]


def _has_all(merge: Any, removed: Collection[str]) -> bool:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    return not any(part in removed for part in (*parts, "".join(parts)))


def _check_ids(
    vocab: Collection[Any], kept: Collection[int], added: Collection[int], where: str
) -> None:
    """Raise CheckpointError unless readers, which number added tokens in order, give new ones the ids in `added`."""
    count, last = len(vocab), max(kept, default=-1)
    expected = last + 1 if last >= count else count
    ids = set(vocab.values()) if isinstance(vocab, dict) else set(range(count))
    for index in sorted(set(added) - ids - set(kept)):
        if index != expected:
            raise CheckpointError(
                f"{where}: its ids have holes, so a token that is added would get the id {expected}, not {index};"
                " take another model's tokenizer (`tokenizer: {source: MODEL}`)"
            )
        expected += 1


def _change_config(
    config: dict[str, Any], data: Mapping[str, Any], change: TokenizerChange
) -> dict[str, Any]:
    """Return tokenizer_config.json with the same added tokens as `data`, if it lists any."""
    changed = _without(config, change.removed)
    if isinstance(config.get(_DECODER), dict):
        changed[_DECODER] = {
            str(entry["id"]): {key: entry[key] for key in ("content", *PLAIN) if key in entry}
            for entry in data["added_tokens"]
        }
    return changed


def _without(config: dict[str, Any], removed: Collection[str]) -> dict[str, Any]:
    """Return `config` without the names of special tokens that are gone: readers would add them again."""

    def is_gone(value: Any) -> bool:
        text = value.get("content") if isinstance(value, dict) else value
        return isinstance(text, str) and text in removed

    return {
        key: [each for each in value if not is_gone(each)] if isinstance(value, list) else value
        for key, value in config.items()
        if not (key.endswith("_token") and is_gone(value))
    }


def _change_object(
    files: dict[str, bytes],
    name: str,
    model: Path,
    change: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    if name in files:
        before = parse_object(files[name], str(model / name))
        after = change(before)
        if after != before:
            files[name] = dump_object(after)
