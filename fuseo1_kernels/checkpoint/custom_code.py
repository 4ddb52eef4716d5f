"""The Python files that belong to a model: those that `auto_map` names, and what these import relatively.

They are found by their text. Nothing is imported or run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

# "module.Class". With "org/name--" before it the code is another repository's, and stays there.
_REFERENCE = re.compile(r"(\w+)\.\w+")
_IMPORT = re.compile(
    rb"^[ \t]*from[ \t]+(\.+)([\w.]*)[ \t]+import[ \t]+(?:\(([^)]{0,4000})\)|([^\n]*))",
    re.MULTILINE,
)


def find_code(
    configs: Iterable[Any], available: Container[str], read: Callable[[str], bytes]
) -> list[str]:
    """Return the names of the Python files that the JSON `configs` need, as far as they are `available`.

    `read` returns a file's content.
    """
    found: list[str] = []
    pending = [f"{module}.py" for config in configs for module in _modules(config)]
    while pending:
        name = pending.pop()
        if name in available and name not in found:
            found.append(name)
            pending += _imported(name, read(name))
    return sorted(found)


def _modules(config: Any) -> Iterator[str]:
    """Yield the modules that `auto_map` names, wherever in the JSON it stands."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key == "auto_map" and isinstance(value, dict):
                for entry in value.values():
                    for text in entry if isinstance(entry, list) else [entry]:
                        if isinstance(text, str) and (match := _REFERENCE.fullmatch(text)):
                            yield match[1]
            else:
                yield from _modules(value)
    elif isinstance(config, list):
        for item in config:
            yield from _modules(item)


def _imported(name: str, text: bytes) -> Iterator[str]:
    """Yield the files that the relative imports in `text`, the content of file `name`, may mean."""
    folders = name.split("/")[:-1]
    for dots, module, in_brackets, in_line in _IMPORT.findall(text):
        if len(dots) - 1 > len(folders):
            continue  # leads out of the model
        above = folders[: len(folders) - (len(dots) - 1)]
        parts = [*above, *filter(None, module.decode("ascii", "replace").split("."))]
        names = re.findall(r"\w+", (in_brackets or in_line).decode("utf-8", "replace"))
        for path in (parts, *([*parts, each] for each in names)):
            if path:
                yield "/".join(path) + ".py"
                yield "/".join([*path, "__init__.py"])
