"""The recipes of the published FuseO1 models, to be run by name.

Each recipe is a config file beside this module. Its first line is a comment that describes it.
"""

from __future__ import annotations

import difflib
from importlib.resources import files
from typing import NamedTuple

_SUFFIX = ".yaml"


class Recipe(NamedTuple):
    """A recipe's name and a description of one line."""

    name: str
    description: str


def list_recipes() -> list[Recipe]:
    """Return all recipes, sorted by name."""
    texts = _texts()
    return [Recipe(name, texts[name].splitlines()[0].lstrip("# ")) for name in sorted(texts)]


def find_recipe(name: str) -> str | None:
    """Return the YAML text of the recipe `name`, ignoring case; None if there is no such recipe."""
    for known, text in _texts().items():
        if known.lower() == name.lower():
            return text
    return None


def nearest_recipe(name: str) -> str | None:
    """Return the name of the recipe most similar to `name`; None if none is similar."""
    by_lower = {known.lower(): known for known in _texts()}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None


def _texts() -> dict[str, str]:
    return {
        entry.name.removesuffix(_SUFFIX): entry.read_text(encoding="utf-8")
        for entry in files(__name__).iterdir()
        if entry.name.endswith(_SUFFIX)
    }
