"""Checks that generation stops at the tokenizer's end token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .json_file import parse_object
from .layout import CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG
from .vocabulary import Vocabulary


def find_stop_mismatch(files: Mapping[str, bytes], vocabulary: Vocabulary | None) -> str | None:
    """Return, in words, why generation may not stop; None if it will, or if the files do not tell.

    `files` are the small files of a model. Raises CheckpointError for damaged ones.
    """
    end = _read(files, TOKENIZER_CONFIG).get("eos_token")
    if isinstance(end, dict):
        end = end.get("content")
    settings, stops = _stops(files)
    if not isinstance(end, str) or (settings == CONFIG and not stops):
        return None  # an encoder, or a default of its class
    tokens = vocabulary.tokens if vocabulary else {}
    ids = [index for index, token in tokens.items() if token == end]
    if not stops:
        return f"{settings} has no eos_token_id, so generation does not stop at {end!r:.80}; add it"
    if ids and not set(ids) & {stop for stop in stops if isinstance(stop, int)}:
        return (
            f"{settings} stops at the ids {stops!r:.80}, but the tokenizer ends a text with {end!r:.80}, id {ids[0]}:"
            " generation may not stop; add the id to eos_token_id"
        )
    return None


def find_turn_mismatch(
    files: Mapping[str, bytes], model: str, its: Mapping[str, bytes]
) -> str | None:
    """Return, in words, why generation may not stop after a turn; None if it will, or if the files do not tell.

    `files` are the small files of a model whose chat template is that of another one, `model`; `its` are that one's.
    Raises CheckpointError for damaged ones.
    """
    settings, stops = _stops(files)
    lacking = [stop for stop in _stops(its)[1] if stop not in stops]
    if not lacking:
        return None
    return (
        f"the chat template is that of {model}, which stops at {lacking!r:.80}, too; {settings} stops at"
        f" {stops!r:.80}: generation may not stop after a turn; add the ids to eos_token_id"
    )


def find_turn_end_mismatch(
    files: Mapping[str, bytes], vocabulary: Vocabulary | None, end: str
) -> str | None:
    """Return, in words, why generation may not stop after a turn that ends with the token `end`; None as above.

    `files` are the small files of a model. Raises CheckpointError for damaged ones.
    """
    if vocabulary is None:
        return None
    settings, stops = _stops(files)
    ids = [index for index, token in vocabulary.tokens.items() if token == end]
    begin = f"the chat template ends a turn with {end!r}, "
    if not ids:
        return f"{begin}which is not a token here: generation may not stop after a turn"
    if set(ids) & {stop for stop in stops if isinstance(stop, int)}:
        return None
    return (
        f"{begin}id {ids[0]}; {settings} stops at {stops!r:.80}: generation may not stop after a turn; add the id to"
        " eos_token_id"
    )


def _stops(files: Mapping[str, bytes]) -> tuple[str, list[Any]]:
    """Return the ids that end generation, and the file that says so."""
    settings = GENERATION_CONFIG if GENERATION_CONFIG in files else CONFIG
    stated = _read(files, settings).get("eos_token_id")
    return settings, stated if isinstance(stated, list) else [] if stated is None else [stated]


def _read(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return parse_object(files[name], name) if name in files else {}
