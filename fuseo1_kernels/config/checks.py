"""Checks of a config that need only a few of its values. They raise ConfigError."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..errors import ConfigError, did_you_mean
from ..methods.method import Method
from .parameter_values import Setting, scalars


def check_spelling(names: Sequence[str]) -> None:
    """Raise ConfigError if one model has two spellings, such as `a`, `./a` and `a/`: it would count twice."""
    spellings: dict[str, str] = {}
    for name in names:
        first = spellings.setdefault(os.path.normpath(name), name)
        if first != name:
            raise ConfigError(f"{first!r} and {name!r} are one model: spell it one way")


def check_setting(
    method: Method, where: str, name: str, setting: Setting, of_one_model: bool
) -> None:
    """Raise ConfigError if `method` has no such parameter, or if one of the setting's values is invalid.

    `where` is the key path of the `parameters:` mapping. `of_one_model`: it belongs to one model.
    """
    if name not in method.parameters:
        raise ConfigError(
            f"{where}: {method.name} has no parameter {name!r}"
            f"{did_you_mean(name, method.parameters)}"
        )
    spec = method.parameters[name]
    if of_one_model and not spec.per_model:
        raise ConfigError(
            f"{where}.{name}: all models share this parameter: "
            "move it under the top-level `parameters:`"
        )
    for place, scalar in scalars(setting):
        value = spec.validate(scalar, f"{where}.{name}{place}")
        if spec.idle and value != spec.default:
            raise ConfigError(
                f"{where}.{name}{place}: {scalar!r} has no meaning for {method.name}; leave it out"
            )
