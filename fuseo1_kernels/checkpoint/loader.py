"""Opens a model: a local directory or a hub id, safetensors or torch files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .header import Header, HeaderRoom, read_header
from .hub import resolve
from .json_file import read_object
from .layout import CONFIG, Weights, check_links, find_weights, homes_of
from .other_formats import no_weights
from .scales import find_scales
from .source import Source, collect_shards


def open_source(
    model: str,
    *,
    download_progress: bool = True,
    weights: bool = True,
    download: bool = True,
    allow_links: Sequence[str | os.PathLike[str]] = (),
    room: HeaderRoom | None = None,
) -> Source:
    """Open a directory, else a hub id (`org/name` or `org/name@revision`), downloaded if need be.

    Weights are looked for in the order model.safetensors, its index with shards, pytorch_model.bin,
    its index. Every header is read and checked; no tensor data is. With `weights=False` only the
    small files are needed, and `tensors` is empty; with `download=False` the hub's cache must hold
    the model. A file may be a link to one in the model's directory, in the hub's cache or in one of
    the directories `allow_links`. A header that has no `room` is not read. Raises CheckpointError.
    """
    path = Path(model)
    try:
        path = resolve(model, download_progress, weights=weights, download=download)
        homes = homes_of(path, allow_links)
        if weights:
            source = _open(model, path, homes, room)
            source.tensors, source.scales = find_scales(model, source.tensors, source.config)
            return source
        return Source(model, path, {}, _config(path, homes), {})
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def _open(model: str, path: Path, homes: Sequence[Path], room: HeaderRoom | None) -> Source:
    weights = find_weights(path, homes=homes)
    if weights is None:
        raise no_weights(path)
    for file in weights.files:
        if not os.path.exists(path / file):
            raise CheckpointError(f"{path}: the index names the shard {file!r}, which is missing")
    return read_weights(model, path, weights, _config(path, homes), homes, room)


def read_weights(
    model: str,
    path: Path,
    weights: Weights,
    config: dict[str, Any],
    homes: Sequence[Path],
    room: HeaderRoom | None,
) -> Source:
    """Return the model whose weights are these files; their headers are read and checked. Raises CheckpointError."""
    check_links(path, weights.files, homes)
    files = [path / file for file in weights.files]
    if weights.torch_bin:
        from .torch_bin import open_torch_bin

        return open_torch_bin(model, path, config, files, weights.weight_map, room)
    headers: list[Header] = [read_header(file, room) for file in files]
    held = [header.tensors for header in headers]
    tensors = collect_shards(files, held, weights.weight_map, path)
    identities = {header.file: header.identity for header in headers}
    return Source(model, path, tensors, config, identities)


def _config(path: Path, homes: Sequence[Path]) -> dict[str, Any]:
    check_links(path, [CONFIG], homes)
    return read_object(path / CONFIG) if (path / CONFIG).exists() else {}
