"""Reads and writes JSON objects in a model's files; every error is a CheckpointError that names the file."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, mib
from .files import read_bytes

#: No model's file comes near it. Deeper JSON can be parsed, but not be compared, shown or written.
MAX_DEPTH = 100

#: The most bytes of a file.
MAX_BYTES = 100_000_000

# Bytes that the objects of a file may take; those of a hundred thousand tensors in an index take 60 MB.
_MOST_MEMORY = 1 << 30
# Bytes that each of these may stand for: a list, an object, half a text, and a number with its place.
_COSTS = ((b"[", 88), (b"{", 240), (b'"', 32), (b",", 48), (b":", 48))


def memory_of(text: bytes) -> int:
    """Return how many bytes JSON and its objects take at most while it is read, by what it has of each kind."""
    # The bytes, the text, and the texts in it: one rare character makes every one take four bytes.
    copies = 3 if text.isascii() and b"\\u" not in text else 9
    return len(text) * copies + sum(text.count(sign) * cost for sign, cost in _COSTS)


def parse_object(
    text: bytes,
    where: str,
    *,
    unique_keys: bool = False,
    strict: bool = False,
    compact: Callable[[dict[str, Any]], Any] | None = None,
    max_memory: int | None = _MOST_MEMORY,
) -> dict[str, Any]:
    """Return the JSON object that the UTF-8 `text` holds; `where` names it in errors.

    With `unique_keys`, a key that stands twice in one object is an error (RFC 8259 leaves its
    meaning open). With `strict`, so is everything that Python accepts and stricter parsers do not:
    NaN, numbers above a double's, half of a surrogate pair; and -0 is a float. With `compact`,
    every object becomes what that makes of it, as soon as it is read. `max_memory`: the most bytes
    that the objects may take (None: the caller has counted). Raises CheckpointError.
    """
    if max_memory is not None and (needed := memory_of(text)) > max_memory:
        raise CheckpointError(f"{where}: absurdly large: as objects it may take {mib(needed)}")

    def no_duplicates(pairs: list[tuple[str, Any]]) -> Any:
        items = dict(pairs)
        if len(items) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = next(key for key, count in counts.items() if count > 1)
            raise CheckpointError(f"{where}: {twice!r} stands twice in it")
        return compact(items) if compact else items

    try:
        data = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=no_duplicates if unique_keys else None,
            parse_float=_strict_float if strict else None,
            parse_int=_strict_int if strict else None,
            parse_constant=_refuse_constant if strict else None,
        )
        # Only escapes can make half of a surrogate pair, and most files have none of those.
        if strict and b"\\u" in text:
            json.dumps(data, ensure_ascii=False, default=repr).encode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where}: not UTF-8 ({error})") from None
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{where}: not valid Unicode ({error})") from None
    # ValueError: bad syntax, and integers of thousands of digits; RecursionError: absurd nesting.
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{where}: must be a JSON object, not {type(data).__name__}")
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
    if level:
        raise CheckpointError(f"{where}: nested more than {MAX_DEPTH} levels deep")
    return data


def _strict_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number out of range")
    return number


def _strict_int(text: str) -> int | float:
    number = _strict_float(text)
    return number if text == "-0" else int(text)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number in JSON")


def read_object(file: Path, *, unique_keys: bool = False) -> dict[str, Any]:
    """Return the JSON object in `file`. Raises CheckpointError."""
    return parse_object(read_bytes(file, MAX_BYTES), str(file), unique_keys=unique_keys)


def dump_object(data: dict[str, Any], default: Callable[[Any], Any] | None = None) -> bytes:
    """Return `data` as Hugging Face's libraries write it: indented, UTF-8, a newline at the end.

    `default` makes JSON's types of what is none of them, one by one.
    """
    out = io.BytesIO()
    for piece in json.JSONEncoder(indent=2, ensure_ascii=False, default=default).iterencode(data):
        # UTF-8 cannot hold half of a surrogate pair; Python's escape for it is valid JSON too.
        out.write(piece.encode("utf-8", "backslashreplace"))
    out.write(b"\n")
    return out.getvalue()  # without a copy


def change_objects(data: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return JSON data with what `change` makes of each object in it, the outer ones first. `data` stays as it is."""
    if isinstance(data, dict):
        return {key: change_objects(value, change) for key, value in change(data).items()}
    return [change_objects(item, change) for item in data] if isinstance(data, list) else data
