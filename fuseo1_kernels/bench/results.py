"""Results: the figures of a run and the machine, as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import MergeError
from .figures import Figure

#: The first field of the JSON; another number where the fields mean something else.
SCHEMA = "fuseo1-bench/1"

_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "dict": dict,
    "list": list,
}


@dataclass(frozen=True)
class Results:
    """Figures of one run. `machine` is what machine.describe() found."""

    machine: dict[str, Any]
    figures: list[Figure]

    def dumps(self) -> str:
        """Return them as JSON."""
        figures = [asdict(figure) for figure in self.figures]
        content = {"schema": SCHEMA, "machine": self.machine, "figures": figures}
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what `dumps` returned. Raises MergeError."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise MergeError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
            raise MergeError(f"{path} is not JSON: {error}") from error
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema != SCHEMA:
            raise MergeError(f"{path}: its schema is {schema!r}; this version reads {SCHEMA!r}")
        machine, figures = content.get("machine"), content.get("figures")
        if not isinstance(machine, dict) or not isinstance(figures, list):
            raise MergeError(f"{path}: the machine or the figures are missing")
        return cls(machine, [_figure(record, path) for record in figures])


def _figure(record: Any, path: Path) -> Figure:
    """The figure of a JSON object that has its fields, each of its type."""
    for field in fields(Figure):
        kind = _TYPES[str(field.type).partition("[")[0]]
        if not isinstance(record, dict) or not isinstance(record.get(field.name), kind):
            raise MergeError(f"{path}: a figure has no {field.name} that is {field.type}")
    return Figure(**{field.name: record[field.name] for field in fields(Figure)})
