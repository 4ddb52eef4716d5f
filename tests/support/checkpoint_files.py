"""Small checkpoints for the tests, written byte by byte, independently of the code under test."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: name -> (safetensors dtype, shape, bytes)
Tensors = Mapping[str, tuple[str, tuple[int, ...], bytes]]

TWO: Tensors = {
    "a": ("BF16", (2, 3), bytes(range(12))),
    "b": ("F32", (), b"\x01\x02\x03\x04"),
}


def raw_file(file: Path, header: Any, data: bytes = b"") -> Path:
    """Write a safetensors file whose header is `header`, as it stands if it is bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


def safetensors_file(file: Path, tensors: Tensors) -> Path:
    """Write a valid safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        end = len(data) + len(content)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), end]}
        data += content
    return raw_file(file, header, data)


def write_json(file: Path, data: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data), encoding="utf-8")
    return file


def sharded_model(path: Path, shards: Mapping[str, Tensors], **weight_map: str) -> Path:
    """Write shards and their index; `weight_map` entries are added to what is true."""
    true = {name: file for file, tensors in shards.items() for name in tensors}
    for file, tensors in shards.items():
        safetensors_file(path / file, tensors)
    index = {"metadata": {"total_size": 0}, "weight_map": true | weight_map}
    write_json(path / "model.safetensors.index.json", index)
    return path


def single_model(path: Path, tensors: Tensors = TWO, **config: Any) -> Path:
    """Write model.safetensors and config.json."""
    safetensors_file(path / "model.safetensors", tensors)
    write_json(path / "config.json", {"num_hidden_layers": 2} | config)
    return path


def cached_model(
    cache: Path, repo: str, files: Mapping[str, bytes], revision: str = "main"
) -> Path:
    """Lay `files` out as the hub's cache does, snapshots linking to blobs; return the snapshot."""
    home = cache / f"models--{repo.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = home / "snapshots" / commit
    for folder in (snapshot, home / "blobs", home / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (home / "refs" / revision).write_text(commit)
    for number, (name, content) in enumerate(files.items()):
        blob = home / "blobs" / f"{number:040x}"
        blob.write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def tree(path: Path) -> dict[str, bytes | None]:
    """Return every file below `path` with its bytes, every directory with None."""
    return {
        str(entry.relative_to(path)): entry.read_bytes() if entry.is_file() else None
        for entry in path.rglob("*")
    }
