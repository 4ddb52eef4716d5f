"""Several YAML documents, as mergekit-multi takes them: a chain of merges, of which later ones use earlier results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from .references import split_reference
from .schema import MergeConfig
from .yaml_text import MAX_DOCUMENTS, short_yaml

_NAME = "name"
# An earlier result is computed anew by each merge that reads it, so that models are read as often as there are ways to
# the last merge from them: this often at most, and by so many merges, one reading the other's result.
_MOST_READ = 1000
_DEEPEST = 30


def parse_chain(
    documents: Sequence[Any], name: str, parse: Callable[[Any, str], MergeConfig]
) -> MergeConfig:
    """Return the config of the last merge of a chain; its `earlier` are the others, each before those that use it.

    Args:
        documents: mappings, each a config with a `name`. The one whose result is the output may have none; else it is
            the one that no other document uses.
        name: what the config is called in messages.
        parse: makes a config of one document without its `name`.

    Raises:
        ConfigError: a document is no config; two have one name; they use each other in a circle; the output's is not
            clear; a document is not used; an earlier result is asked for with an adapter; the chain is too large.
    """
    if not 0 < len(documents) <= MAX_DOCUMENTS:
        problem = f"{len(documents)} merges" if documents else "no merge"
        raise ConfigError(f"{name}: has {problem}; from 1 to {MAX_DOCUMENTS} are supported")
    configs: dict[str | None, MergeConfig] = {}
    for number, document in enumerate(documents, 1):
        where = f"{name}, document {number}"
        own = document.get(_NAME) if isinstance(document, Mapping) else None
        if own is not None and not (isinstance(own, str) and own.strip()):
            raise ConfigError(f"{where}: name: must be text, not {short_yaml(own)}")
        if own in configs:
            which = f"another document is named {own!r}, too" if own else "a second one has no name"
            raise ConfigError(f"{where}: {which}; name every merge but the last one, each its own")
        if isinstance(document, Mapping):
            document = {key: value for key, value in document.items() if key != _NAME}
        configs[own] = parse(document, where)
    names = {own for own in configs if own is not None}
    for config in configs.values():
        _check_references(config, names, name)
    uses = {own: names.intersection(config.model_names()) for own, config in configs.items()}
    lent = {own: names.intersection([config.tokenizer_model]) for own, config in configs.items()}
    order = _in_order({own: uses[own] | lent[own] for own in configs}, name)
    last = _last(uses, name)
    _check_size(configs, uses, order, name)
    return configs[last].after({own: configs[own] for own in order if own and own != last})


def _check_references(config: MergeConfig, names: set[str], name: str) -> None:
    """Raise ConfigError for an earlier merge with an adapter or a revision, or in an adapter's place."""
    for reference in config.model_names():
        if reference in names:
            continue
        for place in split_reference(reference):
            earlier = (place or "").partition("@")[0]
            if earlier in names:
                raise ConfigError(
                    f"{name}: {reference!r}: {earlier!r} is the result of an earlier merge, which takes no adapter and"
                    " no revision, and is none: add the adapter to a model of that merge, or run that merge by itself"
                )


def _check_size(
    configs: Mapping[str | None, MergeConfig],
    uses: Mapping[str | None, Iterable[str]],
    order: Sequence[str | None],
    name: str,
) -> None:
    """Raise ConfigError if models would be read too often, or by too many merges, one behind the other."""
    read: dict[str | None, int] = {}
    depth: dict[str | None, int] = {}
    for own in order:
        read[own] = len(configs[own].model_names()) + sum(read[used] for used in uses[own])
        depth[own] = 1 + max((depth[used] for used in uses[own]), default=0)
        if read[own] > _MOST_READ or depth[own] > _DEEPEST:
            raise ConfigError(
                f"{name}: the chain up to {own or 'the last merge'!r} is too large: {depth[own]} merges one behind the"
                f" other (at most {_DEEPEST}), for which models are read {read[own]} times (at most {_MOST_READ});"
                " run some of its merges by themselves"
            )


def _in_order(uses: Mapping[str | None, Iterable[str]], name: str) -> list[str | None]:
    """Return the names, each behind those that it uses. Raises ConfigError for a circle."""
    order: list[str | None] = []

    def visit(own: str | None, path: tuple[str | None, ...]) -> None:
        if own in path:
            circle = " -> ".join(map(str, (*path[path.index(own) :], own)))
            raise ConfigError(f"{name}: merges use each other in a circle: {circle}")
        if own not in order:
            for used in sorted(uses[own]):
                visit(used, (*path, own))
            order.append(own)

    for own in uses:
        visit(own, ())
    return order


def _last(uses: Mapping[str | None, Iterable[str]], name: str) -> str | None:
    """Return the name of the document whose result is the output. Raises ConfigError."""
    used = {own for each in uses.values() for own in each}
    unused = [own for own in uses if own not in used]
    if None in uses:
        unused.sort(key=lambda own: own is not None)
    if len(unused) > 1:
        others = ", ".join(repr(own) for own in unused[1:])
        raise ConfigError(
            f"{name}: there is one output, and no other document uses {others}: put each output in a file of its own"
        )
    return unused[0]
