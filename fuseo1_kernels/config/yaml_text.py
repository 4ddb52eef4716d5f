"""Reads and writes YAML: safe, and strict about mistakes that would go unnoticed.

PyYAML silently keeps the last of two equal keys in a mapping; here they are an error. So is text that expands to more
than a config needs: nested aliases ("billion laughs"), extreme nesting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from reprlib import repr as short
from typing import Any

import yaml

from ..errors import ConfigError

# A config is a few mappings deep. Only the overrides of a tokenizer's configuration may be long.
_MAX_DEPTH = 50
_MAX_NODES = 100_000
#: The most documents of one file or list.
MAX_DOCUMENTS = 100
# Line breaks in YAML 1.1. PyYAML writes them raw unless they are escaped, and reads "\x85" as "\n".
_ODD_BREAKS = frozenset("\x85\u2028\u2029")


def read_yaml(text: str, name: str, repeated: list[str] | None = None) -> list[Any]:
    """Return the data of each document in the YAML `text`; there is at least one.

    `repeated`: gets a line for each key that a mapping has already, whose last value is taken; None: it is an error.
    Raises ConfigError with `name`, the line and the column.
    """
    try:
        documents = list(islice(_documents(text, repeated), MAX_DOCUMENTS + 1))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{name}: {position}{error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # For example control characters, or an escape such as "\UFFFFFFFF".
        raise ConfigError(f"{name}: is not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: is not a config: it is nested too deeply") from error
    if len(documents) > MAX_DOCUMENTS:
        raise ConfigError(f"{name}: is not a config: it has more than {MAX_DOCUMENTS} documents")
    return documents or [None]


def _documents(text: str, repeated: list[str] | None) -> Iterator[Any]:
    loader = _Loader(text, repeated)
    while loader.check_data():  # type: ignore[no-untyped-call]
        yield loader.get_data()


def short_yaml(value: Any) -> str:
    """Return `value` as error messages show it: short, in YAML's terms."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print an integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def key_path(where: str, key: Any) -> str:
    """Return the path of a key in the mapping at `where`, "" for the whole config, as error messages show it."""
    word = key if isinstance(key, str) and key.isprintable() else short_yaml(key)
    return f"{where}.{word}" if where else word


def join_yaml(documents: Sequence[str]) -> str:
    """Return YAML documents as one text."""
    return "---\n".join(documents)


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML: keys in their order, flat lists on one line, text of several lines in blocks."""
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return str(text)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which makes only plain data, with checks for repeated keys and for size."""

    def __init__(self, text: str, repeated: list[str] | None) -> None:
        super().__init__(text)
        self._repeated = repeated

    def compose_mapping_node(self, anchor: dict[Any, Any]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            identity, line = (key.tag, key.value), key.start_mark.line + 1
            if identity not in first:
                first[identity] = line
                continue
            again = f"the key {key.value!r} stands here again (first in line {first[identity]})"
            if self._repeated is None:
                problem = f"{again}; mergekit takes the last; --like-mergekit does, too"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            self._repeated.append(f"line {line}: {again}; the last one holds, as in mergekit")
        return node

    def get_node(self) -> yaml.Node | None:
        node = super().get_node()
        if node is not None:
            self._measure(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, ValueError) as error:
            # PyYAML does not validate scalars before it converts them: 2024-13-45, `!!bool x`, `!!int ''`.
            problem = f"{short(node.value)} is no {node.tag.rpartition(':')[2]}; put text in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error

    def _measure(self, node: yaml.Node, known: dict[yaml.Node, tuple[int, int]]) -> tuple[int, int]:
        """Return the number of nodes in `node`, with every alias expanded, and their depth."""
        if node in known:
            return known[node]
        known[node] = (0, _MAX_DEPTH)  # a node that contains itself is too deep
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        sizes = [self._measure(part, known) for part in parts]
        count = 1 + sum(size for size, _ in sizes)
        depth = 1 + max((depth for _, depth in sizes), default=0)
        if depth > _MAX_DEPTH:
            problem = "is not a config: it is nested too deeply"
        elif count > _MAX_NODES:
            problem = f"is not a config: it has more than {_MAX_NODES} values"
        else:
            known[node] = (count, depth)
            return count, depth
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, with indented lists and without anchors such as `&id001`."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, indentless=False)


def _represent_list(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    flat = not any(isinstance(entry, (dict, list)) for entry in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


def _represent_text(dumper: _Dumper, data: str) -> yaml.Node:
    style = "|" if "\n" in data else None
    if not _ODD_BREAKS.isdisjoint(data):
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)
