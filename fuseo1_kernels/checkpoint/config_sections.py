"""Reads and changes the parts of config.json that describe one part of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Paths of the sections that describe the language model of a model for several kinds of input.
TEXT_CONFIGS = (
    ("text_config",),
    ("llm_config",),
    ("language_config",),
    ("thinker_config", "text_config"),
)


def section_at(config: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any] | None:
    """Return the mapping at `path`, the keys from the top; None if there is none."""
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else None


def change_section(config: dict[str, Any], path: Sequence[str], changes: Mapping[str, Any]) -> None:
    """Update the mapping at `path`, which is there. It and the mappings around it are copied first."""
    for key in path:
        config[key] = dict(config[key])
        config = config[key]
    config.update(changes)
