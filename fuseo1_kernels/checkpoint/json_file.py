"""JSON objects in a model's files; every problem is a CheckpointError that names the file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import CheckpointError


def parse_object(text: bytes, where: str, *, unique_keys: bool = False) -> dict[str, Any]:
    """Return the JSON object that the UTF-8 `text` holds; `where` names it in errors.

    With `unique_keys` a key that stands twice in one object is an error (RFC 8259 leaves its
    meaning open).
    """

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        items = dict(pairs)
        if len(items) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = next(key for key, count in counts.items() if count > 1)
            raise CheckpointError(f"{where}: {twice!r} stands twice in it")
        return items

    try:
        data = json.loads(
            text.decode("utf-8"), object_pairs_hook=no_duplicates if unique_keys else None
        )
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where}: not UTF-8 ({error})") from None
    # ValueError: bad syntax, and integers of thousands of digits; RecursionError: absurd nesting.
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{where}: must be a JSON object, not {type(data).__name__}")
    return data


def read_object(file: Path, *, unique_keys: bool = False) -> dict[str, Any]:
    """Return the JSON object in `file`."""
    return parse_object(read_bytes(file), str(file), unique_keys=unique_keys)


def read_bytes(file: Path) -> bytes:
    """Return the whole of a small file."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error


def dump_object(data: dict[str, Any]) -> bytes:
    """Return `data` as Hugging Face's libraries write it: indented, UTF-8, a newline at the end."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
