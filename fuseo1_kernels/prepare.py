"""From a config to opened models, a plan and the small files: all that precedes reading weights."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import ExitStack
from numbers import Integral
from pathlib import Path
from typing import Any

from . import __version__
from .checkpoint.shards import index_json
from .checkpoint.sidecar import check_same_vocabulary, model_card, sidecar_files
from .checkpoint.source import Source, open_source
from .config import MergeConfig, load_config, parse_config
from .errors import CheckpointError, ConfigError
from .plan import Plan
from .recipes import find_recipe, nearest_recipe

_PROBLEMS_SHOWN = 20


def as_config(config: str | os.PathLike[str] | Mapping[str, Any] | MergeConfig) -> MergeConfig:
    """The validated config, whatever form it came in."""
    if isinstance(config, MergeConfig):
        return config
    if isinstance(config, Mapping):
        return parse_config(config)
    name = os.fspath(config)
    text = find_recipe(name)
    # A directory of a recipe's name is most likely what the recipe made.
    if text is not None and (os.path.isdir(name) or not os.path.exists(name)):
        return load_config(name, text)
    if os.path.exists(name):
        return load_config(name)
    near = nearest_recipe(name)
    hint = f"did you mean the recipe {near}?" if near else "--list-recipes lists the recipes"
    raise ConfigError(f"{name}: neither a file nor a recipe; {hint}")


def check_sizes(**sizes: object) -> None:
    """Refuse a number of bytes, by its parameter's name, that is none."""
    for name, size in sizes.items():
        if not isinstance(size, Integral) or isinstance(size, bool):
            raise ConfigError(
                f"{name}: {size!r} is not a number of bytes; write for example 5 * 10**9 or 512 << 20"
            )
        if size < 1:
            raise ConfigError(f"{name}: {size}: a size must be positive")


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


def refuse_problems(plan: Plan) -> None:
    """Raise one error that lists what makes the merge impossible, if anything does."""
    if not plan.problems:
        return
    shown = list(plan.problems[:_PROBLEMS_SHOWN])
    if len(plan.problems) > len(shown):
        shown.append(f"... and {len(plan.problems) - len(shown)} more")
    raise CheckpointError("the models do not fit together:\n  " + "\n  ".join(shown))


def make_sidecars(
    config: MergeConfig,
    plan: Plan,
    sources: Mapping[str, Source],
    lender: Source | None,
    title: str,
    copy_tokenizer: bool,
) -> dict[str, bytes]:
    """The small files beside the weights: made before any weight is read, so that a mistake shows early."""
    base = sources[config.config_model]
    if lender is not None and config.tokenizer_source is not None:
        check_same_vocabulary(lender, [s for s in sources.values() if s is not lender])
    overrides = config.tokenizer_files.overrides if config.tokenizer_files else {}
    files = sidecar_files(
        base=base,
        tokenizer=lender,
        tokenizer_overrides=overrides,
        chat_template=config.chat_template,
        sources=list(sources.values()),
        out_dtype=plan.dtype_name,
        num_layers=plan.num_layers,
        vocab_size=plan.vocab_size,
        copy_tokenizer=copy_tokenizer,
    )
    files["README.md"] = model_card(
        name=title,
        recipe_yaml=config.to_yaml(),
        base=config.base_of(),
        targets=config.target_names(),
        method=config.merge_method,
        dtype=plan.dtype_name,
        versions={"fuseo1-kernels": __version__, "Python": platform.python_version()},
    )
    # mergekit's name for it, which tools on the hub look for.
    files["mergekit_config.yml"] = config.to_yaml().encode()
    index = index_json(plan.shards)
    if index is not None:
        files["model.safetensors.index.json"] = index
    return files
