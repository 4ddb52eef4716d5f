"""From a config to opened models, a plan and the small files: all that precedes reading weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from ..checkpoint.loader import open_source
from ..checkpoint.source import Source
from ..config.schema import MergeConfig
from ..errors import CheckpointError, ConfigError


def open_sources(
    config: MergeConfig, stack: ExitStack, *, progress: bool = True, download: bool = True
) -> dict[str, Source]:
    """Open every model that is merged, by the config's names, until `stack` closes."""
    sources: dict[str, Source] = {}
    named: dict[str, str] = {}
    problems = []
    for name in config.model_names():
        try:
            source = open_source(name, download_progress=progress, download=download)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        sources[name] = stack.enter_context(source)
        first = named.setdefault(os.path.realpath(source.path), name)
        if first != name:
            raise ConfigError(f"models {first} and {name} are the same directory; name it once")
    if problems:
        raise CheckpointError("\n  ".join(problems))
    return sources


def open_lender(
    config: MergeConfig, sources: Mapping[str, Source], stack: ExitStack, download: bool = True
) -> Source | None:
    """The model whose tokenizer is asked for, if one is; not merged, it lends its small files alone."""
    if config.tokenizer_files is not None:
        name = config.tokenizer_files.model
    elif config.tokenizer_source is not None:
        name = config.tokenizer_source
    else:
        return None
    if name == "base":
        name = config.config_model
    if name in sources:
        return sources[name]
    return stack.enter_context(open_source(name, weights=False, download=download))


def directories(sources: Mapping[str, Source], lender: Source | None) -> list[Path]:
    """Everything that is read, and so must not be overwritten."""
    return [s.path for s in [*sources.values(), *([lender] if lender else [])]]
