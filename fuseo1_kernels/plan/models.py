"""Opens the models that a config names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from ..checkpoint.adapter import open_adapter
from ..checkpoint.header import HeaderRoom
from ..checkpoint.layout import ALWAYS_READ
from ..checkpoint.loader import open_source
from ..checkpoint.other_formats import refusal
from ..checkpoint.source import Source
from ..config.references import split_reference
from ..config.schema import MergeConfig
from ..errors import CheckpointError, ConfigError
from .adapters import add_adapter
from .prefixes import different_prefixes

#: Directories outside of the models to which links in them may lead.
AllowLinks = Sequence[str | os.PathLike[str]]


def open_sources(
    config: MergeConfig,
    stack: ExitStack,
    *,
    progress: bool = True,
    download: bool = True,
    allow_links: AllowLinks = (),
    max_memory: int | None = None,
) -> dict[str, Source]:
    """Open every model to merge and return them by the config's names. `stack` closes them.

    Args:
        config: names the models.
        stack: closes the models.
        progress: show the progress of downloads.
        download: False: models that are not local must be in the hub's cache.
        allow_links: directories outside of the models to which links in them may lead.
        max_memory: the most bytes that the headers of all models may take while they are read. None: any.

    Raises:
        CheckpointError: lists every model that cannot be opened.
        ConfigError: two names are the same directory.
    """
    sources: dict[str, Source] = {}
    name_by_path: dict[tuple[str, str], str] = {}
    problems = []
    room = None if max_memory is None else HeaderRoom(max_memory)
    for name in config.stored_names():
        try:
            source = _open(name, progress, download, allow_links, room)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        sources[name] = stack.enter_context(source)
        adapter = os.path.realpath(source.folds.path) if source.folds else ""
        place = os.path.realpath(source.path), adapter
        first = name_by_path.setdefault(place, name)
        if first != name:
            raise ConfigError(f"models {first} and {name} are the same directory; name it once")
    problems += [p for s in sources.values() if s.folds is None and (p := refusal(s))]
    problems += different_prefixes(sources) if not problems else ()
    if problems:
        raise CheckpointError(*problems)
    return sources


def _open(
    name: str, progress: bool, download: bool, allow_links: AllowLinks, room: HeaderRoom | None
) -> Source:
    """Open a model, with its adapter if `name` has one. Raises CheckpointError."""
    model, adapter = split_reference(name)
    source = open_source(
        model,
        download_progress=progress,
        download=download,
        allow_links=allow_links,
        room=room,
    )
    if adapter is None:
        return source
    if source.scales:
        raise CheckpointError(
            f"model {model}: its weights are FP8, and adapters are added to full weights alone: merge it with"
            " `passthrough` and `dtype: bfloat16` first, and give the result"
        )
    if problem := refusal(source):
        raise CheckpointError(problem)
    opened = open_adapter(
        adapter,
        download_progress=progress,
        download=download,
        allow_links=allow_links,
        room=room,
    )
    return add_adapter(source, name, opened)


def open_lender(
    config: MergeConfig,
    sources: Mapping[str, Source],
    stack: ExitStack,
    download: bool = True,
    allow_links: AllowLinks = (),
) -> Source | None:
    """Return the model that lends its tokenizer to the output; None if the config names none.

    A model that is not merged is opened without its weights. Raises CheckpointError.
    """
    name = config.tokenizer_model
    if name is None:
        return None
    while name in config.earlier:
        earlier = config.earlier[name]
        name = earlier.tokenizer_model or earlier.config_model
    if name in sources:
        return sources[name]
    model, _ = split_reference(name)  # the files beside the weights are the model's
    source = open_source(model, weights=False, download=download, allow_links=allow_links)
    return stack.enter_context(source)


def inputs(sources: Mapping[str, Source], lender: Source | None) -> list[Path]:
    """Return the directories of all opened models, and their files, which links may have elsewhere.

    The output must not replace them. Raises CheckpointError if a directory cannot be read.
    """
    found: list[Path] = []
    for source in [*sources.values(), *([lender] if lender else [])]:
        names = (*source.companions.names, *source.companions.code, *ALWAYS_READ)
        small = (source.path / name for name in names)
        found += [source.path, *source.files, *filter(os.path.islink, small)]
        if source.folds:
            found.append(source.folds.path)
    return found
