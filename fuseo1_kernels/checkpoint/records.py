"""Lines of JSON, each after its checksum, which detects lines that a killed process or a lost page has damaged.

A checksum is no signature: what a line holds is validated, too, before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import xxhash
from pydantic import Field, ValidationError

from ..errors import printable

#: An xxh3-128 checksum in hex.
Checksum = Annotated[str, Field(pattern=r"\A[0-9a-f]{32}\z")]
#: A size, a time in ns, an inode, ...: what a file system has in 64 bits.
Count = Annotated[int, Field(ge=0, lt=2**64)]
#: A sum of squares or of magnitudes.
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def encode_record(record: Any) -> bytes:
    """Return the line that holds `record`, which is in JSON's types."""
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    return b"%s %s\n" % (_digest(text), text)


def intact_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, JSON text) of the intact lines in `data`; torn or damaged lines are left out."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        digest, _, text = line.partition(b" ")
        if text and digest == _digest(text):
            yield number, text


def explain(error: ValidationError) -> str:
    """Return one line that says what is wrong with a record, and where in it."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(key) for key in first["loc"])
    text = f"{where}: {first['msg']}" if where else first["msg"]
    return printable(text if len(text) <= 300 else f"{text[:300]} ...")


def _digest(text: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(text).encode()
