"""Checks of a config that look at a few values, not at the whole. They raise ConfigError."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..errors import ConfigError, did_you_mean
from ..methods.method import Method
from .parameter_values import Setting, scalars


def check_spelling(names: Sequence[str]) -> None:
    """Refuse one model under two names, which would count twice: `a`, `./a`, `a/`."""
    spellings: dict[str, str] = {}
    for name in names:
        first = spellings.setdefault(os.path.normpath(name), name)
        if first != name:
            raise ConfigError(f"{first!r} and {name!r} are one model: spell it one way")


def how_many(least: int, most: int | None) -> str:
    """Return a number of models in words."""
    if least == most:
        return "exactly one model" if most == 1 else f"exactly {most} models"
    assert most is None
    return "at least one model" if least == 1 else f"at least {least} models"


def check_setting(
    method: Method, where: str, name: str, setting: Setting, of_one_model: bool
) -> None:
    known = method.parameters
    if name not in known:
        raise ConfigError(
            f"{where}: {method.name} has no parameter {name!r}{did_you_mean(name, known)}"
        )
    spec = known[name]
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
