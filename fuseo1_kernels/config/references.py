"""References to models as mergekit reads them: `model`, `model+adapter`, and the same as a mapping."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .yaml_text import short_yaml

_FORMS = (
    "must be a directory or a hub id such as org/name, either with +adapter, or a mapping of model and lora, each"
    " text or a mapping of path and revision"
)


def split_reference(name: str) -> tuple[str, str | None]:
    """Return the model and the adapter that `name` means; None: there is none.

    A directory may have a + in its name: it is what it is, and `a+b+c` is split where both parts can be models. Raises
    ConfigError.
    """
    if "+" not in name or _is_directory(name):
        return name, None
    for at, sign in enumerate(name):
        model, adapter = name[:at], name[at + 1 :]
        if sign == "+" and _can_be_model(model) and _can_be_model(adapter):
            return model, adapter
    raise ConfigError(f"{name!r}: a model and its adapter are one + apart: org/model+org/adapter")


def as_name(value: Any) -> Any:
    """Return the name that a reference in the form of a mapping has as text; anything else as it is.

    Raises ValueError.
    """
    if not isinstance(value, Mapping):
        return value
    if value.get("override_architecture") is not None:
        raise ValueError("override_architecture: mergekit has it; not in fuseo1-kernels yet")
    keys = {"model", "lora", "override_architecture"}
    if "model" not in value or value.keys() - keys:
        raise ValueError(f"{_FORMS}, not {short_yaml(dict(value))}")
    model, lora = _place(value["model"]), value.get("lora")
    return model if lora is None else f"{model}+{_place(lora)}"


def _place(value: Any) -> str:
    """Return the text of a model's place: `path@revision`."""
    path, revision = value, None
    if isinstance(value, Mapping) and not value.keys() - {"path", "revision"}:
        path, revision = value.get("path"), value.get("revision")
    if not isinstance(path, str) or not path or not isinstance(revision, str | None):
        raise ValueError(f"{_FORMS}, not {short_yaml(value)}")
    return path if revision is None else f"{path}@{revision}"


def _can_be_model(name: str) -> bool:
    return bool(name.strip()) and ("+" not in name or _is_directory(name))


def _is_directory(name: str) -> bool:
    try:
        return os.path.isdir(os.path.expanduser(name))
    except ValueError:  # a name that no file can have
        return False
