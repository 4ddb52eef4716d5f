"""The types of a config's keys, for pydantic.

Each check raises ValueError without the key's name: pydantic knows the key, and load.py joins the two.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, PlainValidator

from ..errors import ConfigError, did_you_mean
from .chat_templates import CHAT_TEMPLATES
from .parameter_values import Setting, parse_setting, setting_as_data
from .references import as_name, split_reference
from .yaml_text import short_yaml

# More than any model has, and few enough to enumerate.
_MAX_LAYERS = 10_000

DType = Literal["bfloat16", "float16", "float32"]

_DTYPES: dict[Any, str] = {
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp16": "float16",
    "float16": "float16",
    "fp32": "float32",
    "float32": "float32",
}


def _model_name(name: str) -> str:
    if not name.strip() or not name.isprintable():
        why = "has unprintable characters" if name.strip() else "is empty"
        raise ValueError(f"must be a directory or a hub id such as org/name; {name!r:.80} {why}")
    try:
        split_reference(name)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return name


def _dtype(value: Any) -> str | None:
    if value is None:
        return None
    name = value.removeprefix("torch.") if isinstance(value, str) else ""
    if name in _DTYPES:
        return _DTYPES[name]
    if name in ("float64", "int64"):
        raise ValueError(f"mergekit has {name}; not in fuseo1-kernels yet")
    near = did_you_mean(name, _DTYPES) if name else ""
    hint = near if near.startswith("; did") else ""
    raise ValueError(f"must be bfloat16, float16 or float32, not {short_yaml(value)}{hint}")


def _layer_range(value: Any) -> tuple[int, int]:
    if isinstance(value, (list, tuple)) and len(value) == 2:
        first, end = value
        whole = type(first) is int and type(end) is int
        # mergekit writes [0, 0] for a module without layers.
        if whole and (0 <= first < end <= _MAX_LAYERS or first == end == 0):
            return first, end
    raise ValueError(
        f"must be two whole numbers [first, end) with 0 <= first < end <= {_MAX_LAYERS}, not {short_yaml(value)}"
    )


def _module_name(name: str) -> str:
    if not name.strip(".") or not name.isprintable():
        raise ValueError(
            "must be `default`, mergekit's name of a module or what tensors' names begin with"
        )
    return name


def _layer_container(value: str) -> str:
    if not value.strip(".") or not value.isprintable():
        raise ValueError("must be what the layers' tensors begin with, such as model.layers")
    return value.removesuffix(".")


def _chat_template(value: str) -> str:
    names = ("auto", *CHAT_TEMPLATES)
    if value not in names and "{" not in value:
        raise ValueError(
            f"must be the text of a Jinja template or a name, not {short_yaml(value)}"
            f"{did_you_mean(value, names)}"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"is not valid Unicode ({error})") from error
    return value


def _overrides(value: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"must fit into tokenizer_config.json: {error}") from error
    return value


def _none_to_empty(value: Any) -> Any:
    return {} if value is None else value


ModelName = Annotated[str, BeforeValidator(as_name), AfterValidator(_model_name)]
ModuleName = Annotated[str, AfterValidator(_module_name)]
OutputDType = Annotated[DType | None, BeforeValidator(_dtype)]
LayerRange = Annotated[tuple[int, int], BeforeValidator(_layer_range)]
LayerContainer = Annotated[str, AfterValidator(_layer_container)]
ChatTemplate = Annotated[str, AfterValidator(_chat_template)]
Overrides = Annotated[dict[str, Any], BeforeValidator(_none_to_empty), AfterValidator(_overrides)]
Parameters = Annotated[
    dict[str, Annotated[Setting, PlainValidator(parse_setting), PlainSerializer(setting_as_data)]],
    BeforeValidator(_none_to_empty),
]
