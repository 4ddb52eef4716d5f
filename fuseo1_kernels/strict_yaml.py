"""YAML in and out: safe, and strict where a slip of the pen would go unnoticed.

YAML lets a mapping name one key twice and PyYAML silently keeps the last; here that is an error.
"""

from __future__ import annotations

from typing import Any

import yaml

from .errors import ConfigError


def read_yaml(text: str, name: str) -> Any:
    """Return the data in the YAML `text`; ConfigError names `name`, the line and the column."""
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{name}: {place}{error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        # Control characters, or a scalar such as the date 2024-13-45.
        raise ConfigError(f"{name}: is not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: is not a config: it is nested too deeply") from error


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML in its own order, flat lists on one line, long text in blocks."""
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return str(text)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which makes plain data only, with the check for repeated keys."""

    def compose_mapping_node(self, anchor: dict[Any, Any]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            identity, line = (key.tag, key.value), key.start_mark.line + 1
            if identity in first:
                problem = (
                    f"the key {key.value!r} stands here again (first in line {first[identity]})"
                )
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            first[identity] = line
        return node


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, writing as a person would: indented lists, and no `&id001`."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, indentless=False)


def _represent_list(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    flat = not any(isinstance(entry, (dict, list)) for entry in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


def _represent_text(dumper: _Dumper, data: str) -> yaml.Node:
    style = "|" if "\n" in data else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)
