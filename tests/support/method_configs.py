"""Configs of every method, as mappings."""

from __future__ import annotations

from typing import Any

from fuseo1_kernels.methods import METHODS


def models(*names: str, **parameters: list[Any]) -> list[dict[str, Any]]:
    """Entries of `models`; each parameter has a value for each of them, or `...` for none."""
    found: list[dict[str, Any]] = [{"model": f"org/{name}"} for name in names]
    for key, values in parameters.items():
        for entry, value in zip(found, values, strict=True):
            if value is not ...:
                entry.setdefault("parameters", {})[key] = value
    return found


def keys(method: str, **changes: Any) -> dict[str, Any]:
    """Return the smallest config that `method` takes, with as few models as possible."""
    spec = METHODS[method]
    required = {p.name: 0.5 for p in spec.parameters.values() if p.required}
    names = ["left", "right", "more"][: spec.least]
    found = {"merge_method": method, "models": models(*names), "parameters": required}
    if spec.base == "required":
        found["base_model"] = "org/base"
    return found | changes
