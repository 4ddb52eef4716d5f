"""Lines of JSON, each after its checksum, which detects lines that a killed process or a lost page has damaged."""

from __future__ import annotations

import json
from typing import Any

import xxhash


def encode_record(record: dict[str, Any]) -> bytes:
    """Return the line that holds `record`."""
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    return b"%s %s\n" % (_digest(text), text)


def decode_records(data: bytes) -> list[dict[str, Any]]:
    """Return the intact records in `data`, in order; torn or damaged lines are left out."""
    records = []
    for line in data.split(b"\n"):
        digest, _, text = line.partition(b" ")
        if text and digest == _digest(text):
            records.append(json.loads(text))
    return records


def _digest(text: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(text).encode()
