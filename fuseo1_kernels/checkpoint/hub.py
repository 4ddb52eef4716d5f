"""Resolves a model's name to a directory: a local one, or a snapshot in the hub's cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from ..errors import CheckpointError
from .companions import companions_to_fetch
from .layout import ADAPTER, ADAPTER_FORMATS, ALWAYS_READ, CONFIG, FORMATS, MODEL_CARD, find_weights

_HUB_ID = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>(?!.*\.\.)\w[\w./-]*))?", re.ASCII
)


# Reasons why nothing is downloaded, with a remedy.
_OFFLINE = "offline (HF_HUB_OFFLINE is set): go online, or run {command} where you are online"
_NO_DOWNLOAD = "dry runs and checks download nothing: run the merge itself, or {command}, first (or mend the path)"


def split_hub_id(model: str) -> tuple[str, str] | None:
    """Split `org/name` or `org/name@revision` (default: main); None for any other text."""
    match = _HUB_ID.fullmatch(model)
    return (match["repo"], match["revision"] or "main") if match else None


def repo_of_snapshot(path: Path) -> str | None:
    """Return the hub id of the model whose snapshot in the hub's cache is `path`; None for any other directory."""
    path = Path(os.path.realpath(path))
    kind, _, repo = path.parent.parent.name.partition("--")
    if path.parent.name != "snapshots" or kind != "models":
        return None
    return repo.replace("--", "/") if split_hub_id(repo.replace("--", "/")) else None


def resolve(
    model: str,
    progress: bool = True,
    *,
    weights: bool = True,
    download: bool = True,
    adapter: bool = False,
) -> Path:
    """Return the directory of `model`: itself if it is one, else the snapshot of that hub id.

    Files that the cache lacks are downloaded, with progress bars if `progress`; under
    HF_HUB_OFFLINE=1, or without `download`, the cache must hold everything. With `weights=False`
    only the small files are needed. `adapter`: it is an adapter, not a model. Raises CheckpointError.
    """
    path = Path(os.path.expanduser(model))
    try:
        if model and path.is_dir():  # Path("") would be the current directory
            return path
        if model and path.exists():
            raise CheckpointError(f"{model}: is a file; give the directory of the model instead")
    except OSError as error:
        raise CheckpointError(f"{model}: cannot be read ({error.strerror})") from error
    hub_id = split_hub_id(model)
    if hub_id is None or not _is_valid(hub_id[0]):
        raise CheckpointError(
            f"{model!r}: {_no_directory(model)}, nor a hub id (org/name or org/name@revision)"
        )
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return _cached(*hub_id, weights, adapter, _OFFLINE)
    if not download:
        return _cached(*hub_id, weights, adapter, _NO_DOWNLOAD)
    return _download(*hub_id, progress, weights, adapter)


def _no_directory(model: str) -> str:
    """The error text for a missing `model`; for a relative path it names the current directory."""
    if os.path.isabs(os.path.expanduser(model)):
        return "no such directory"
    try:
        return f"no such directory (seen from {os.getcwd()})"
    except OSError:
        return "no such directory (seen from a directory that is gone)"


def _is_valid(repo: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined, unused-ignore]

    try:
        validate_repo_id(repo)
    except HFValidationError:
        return False
    return True


def _cached(repo: str, revision: str, with_weights: bool, adapter: bool, advice: str) -> Path:
    """Return the snapshot in the hub cache. Raises CheckpointError, with `advice`, unless it is complete."""
    from huggingface_hub import constants, try_to_load_from_cache

    def error(problem: str) -> CheckpointError:
        command = f"`hf download {repo} --revision {revision}`"
        return CheckpointError(
            f"{repo}: {_no_directory(repo)}, and {problem}; {advice.format(command=command)}"
        )

    cache = constants.HF_HUB_CACHE
    folder = None
    formats = ADAPTER_FORMATS if adapter else FORMATS
    for name in (ADAPTER if adapter else CONFIG, *(name for names in formats for name in names)):
        file = try_to_load_from_cache(repo, name, cache_dir=cache, revision=revision)
        if isinstance(file, str):
            folder = Path(file).parent
            break
    if folder is None:
        raise error(f"not in the hub cache {cache}, which holds nothing of revision {revision!r}")
    if not with_weights:
        return folder
    weights = find_weights(folder, formats)
    if weights is None:
        wanted = " or ".join(name for names in formats for name in names)
        raise error(
            f"not whole in the hub cache {cache}: revision {revision!r} lacks its weights ({wanted})"
        )
    missing = [name for name in weights.files if not (folder / name).exists()]
    if missing:
        raise error(
            f"not whole in the hub cache {cache}: revision {revision!r} lacks {', '.join(missing)}"
        )
    return folder


def _download(repo: str, revision: str, progress: bool, with_weights: bool, adapter: bool) -> Path:
    """Download files that are not cached yet: small files, then weights in the best available format."""
    from huggingface_hub import list_repo_tree, snapshot_download
    from huggingface_hub.hf_api import RepoFile

    def refused(error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{repo}: {_no_directory(repo)}, and the hub does not give revision {revision!r}:"
            f" {' '.join(str(error).split())}"
        )

    def fetch(names: Sequence[str]) -> Path:
        patterns = [escape(name) for name in names]
        try:
            return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
        # The hub's client raises its own errors and those of its HTTP library.
        except Exception as error:
            raise refused(error) from error

    try:
        tree = list_repo_tree(repo, recursive=True, revision=revision)
        sizes = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    except Exception as error:
        with suppress(CheckpointError):  # as if offline
            return _cached(repo, revision, with_weights, adapter, _OFFLINE)
        raise refused(error) from error
    with _progress_bars(progress):
        small = (ADAPTER, MODEL_CARD) if adapter else (*ALWAYS_READ, *companions_to_fetch(sizes))
        folder = fetch(small)
        formats = ADAPTER_FORMATS if adapter else FORMATS
        for single, index in formats if with_weights else ():
            weights = find_weights(folder, [(single, index)])
            names = weights.files if weights else [single]
            fetch(names)
            if all((folder / name).exists() for name in names):
                break
    return folder


@contextmanager
def _progress_bars(wanted: bool) -> Iterator[None]:
    from huggingface_hub.utils import (  # type: ignore[attr-defined, unused-ignore]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if wanted or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
