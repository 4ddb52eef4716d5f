"""Small configs, and short ways to change them and to catch what is said about the change."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from fuseo1_kernels.config.load import parse_config
from fuseo1_kernels.config.schema import MergeConfig
from fuseo1_kernels.errors import ConfigError
from fuseo1_kernels.methods import METHODS

FUSEO1 = """
models:
  - model: org/base
  - model: org/left
  - model: org/right
merge_method: sce
base_model: org/base
parameters:
  select_topk: 1.0
dtype: bfloat16
"""

SLICES = """
slices:
  - sources:
      - {model: org/left, layer_range: [0, 4]}
      - {model: org/base, layer_range: [0, 4]}
    parameters: {select_topk: 0.25}
  - sources:
      - {model: org/left, layer_range: [2, 6]}
      - {model: org/right, layer_range: [4, 8]}
    base_model: org/right
merge_method: sce
base_model: org/base
parameters: {select_topk: 0.75}
"""


def data(text: str = FUSEO1, **changes: Any) -> dict[str, Any]:
    """The config in `text` with top-level keys replaced, or left out where the change is `...`."""
    merged = {**yaml.safe_load(text), **changes}
    return {key: value for key, value in merged.items() if value is not ...}


def config(text: str = FUSEO1, **changes: Any) -> MergeConfig:
    return parse_config(data(text, **changes))


def refusal(text: str = FUSEO1, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config(text, **changes)
    return str(caught.value)


def value(merge: MergeConfig, name: str, tensor: str = "w", t: float = 0.0) -> Any:
    """A parameter's value for one tensor."""
    return merge.resolve()[0].value(merge.method.parameters[name], tensor, t, None)


# --- configs of every method, as mappings ---


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
