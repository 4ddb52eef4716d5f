"""Files that a merge reads back, made and damaged by hand: with right checksums and wrong content."""

from __future__ import annotations

import json
from typing import Any

import xxhash

from fuseo1_kernels.checkpoint.identity import FileIdentity, MergeIdentity
from fuseo1_kernels.checkpoint.journal import TensorRecord

IDENTITY = MergeIdentity(
    version="1",
    nonfinite="error",
    plan="0" * 32,
    files={"/models/a": FileIdentity(5, -1, 7, 8)},
)
TENSOR = TensorRecord(xxhash.xxh3_128_hexdigest(bytes(16)), (1.0, 2.5), 1)

#: Text that is no JSON object, or none that anything here writes.
NO_OBJECTS: dict[str, bytes] = {
    "nothing": b"null",
    "a number": b"7",
    "a list": b"[]",
    "text": b'"text"',
    "half of an object": b'{"a": ',
    "no JSON": b"{'a': 1}",
    "not UTF-8": b'{"\xff": 1}',
    "half a surrogate pair": b'{"\\ud800": 1}',
    "thousands of lists": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "thousands of digits": b'{"a":' + b"9" * 100_000 + b"}",
    "control characters": b'{"\x1b[2J": 1}',
    "escaped control characters": b'{"\\u001b[2J": 1}',
    "a key without end": b'{"' + b"x" * 100_000 + b'": 1}',
}


def sealed(text: bytes) -> bytes:
    """Return a line of a journal or a survey cache that holds `text`."""
    return xxhash.xxh3_64_hexdigest(text).encode() + b" " + text + b"\n"


def resealed(text: bytes) -> bytes:
    """Return the checksum file `text` with its own checksum as it should be, where it has one."""
    try:
        old = json.loads(text)["checksum"].encode()
    except Exception:
        return text
    blank = text.replace(old, b"0" * 32, 1)
    return blank.replace(b"0" * 32, xxhash.xxh3_128_hexdigest(blank).encode(), 1)


def checksum_file() -> dict[str, Any]:
    """Return the content of a checksum file, but for its own checksum."""
    return {
        "algorithm": "xxh3_128",
        "made_by": "fuseo1-kernels 9.9",
        "merge": "a" * 32,
        "options": {"crop_embeddings": False, "nonfinite": "error", "random_seed": 0},
        "files": {"config.json": {"size": 2, "checksum": "2" * 32}},
        "shards": {"model.safetensors": {"size": 100, "header": "3" * 32}},
        "tensors": {"w": {"checksum": "1" * 32, "energy": [1.0, 2.0]}},
    }
