"""Recognizes the configs of mergekit's other commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By a key that mergekit-yaml's configs have not; what the command makes.
_TOOLS = {
    "experts": "mergekit-moe (a mixture of experts, whose routers are made anew)",
    "gate_mode": "mergekit-moe (a mixture of experts, whose routers are made anew)",
    "genome": "mergekit-evolve (a search over merges)",
    "layer_slices": "bakllama (layers of models stacked; here: `slices` and merge_method passthrough)",
    "finetuned_model": "mergekit-extract-lora (an adapter, taken out of a model)",
    "max_rank": "mergekit-extract-lora (an adapter, taken out of a model)",
}


def other_tool(data: Mapping[str, Any]) -> str | None:
    """Return the command that a config is for; None if it is a merge's, as far as it shows."""
    if "merge_method" in data and not data.keys().isdisjoint(("models", "slices", "modules")):
        return None
    return next((tool for key, tool in _TOOLS.items() if key in data), None)
