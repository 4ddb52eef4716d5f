"""Checks a method's parameters as a program gives them, and spreads them over the models."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from numbers import Integral
from typing import Any

from ..errors import ConfigError
from . import METHODS
from .method import Method, Parameter, Scalar


def resolve_method(name: str) -> Method:
    """The method `name`. Raises ConfigError."""
    if name not in METHODS:
        raise ConfigError(f"merge method {name!r}: this version has {', '.join(METHODS)}")
    return METHODS[name]


def resolve_parameters(
    name: str, parameters: Mapping[str, Any] | None, ids: Sequence[Hashable] = ()
) -> dict[str, Any]:
    """Every parameter of method `name`, as given or by default; a per-model one is a tuple, a value for each of `ids`.

    A per-model parameter may be given as one value for all, as a sequence in the order of `ids`, or as a mapping from
    `ids`. Raises ConfigError.
    """
    method = resolve_method(name)
    known, given = method.parameters, dict(parameters or {})
    for key in given:
        if key not in known:
            raise ConfigError(method.lacks(key))
    values: dict[str, Any] = {}
    for key, parameter in known.items():
        if key not in given and parameter.required:
            raise ConfigError(f"{name} needs the parameter {key!r}")
        value = given.get(key, parameter.default)
        if parameter.per_model:
            values[key] = _spread(parameter, value, ids)
        else:
            values[key] = _scalar(parameter, value, key)
    return values


def check_seed(seed: object) -> None:
    """Raises ConfigError unless `seed` is a whole number."""
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise ConfigError(f"random_seed: must be a whole number, not {seed!r}")


def _spread(parameter: Parameter, value: Any, ids: Sequence[Hashable]) -> tuple[Any, ...]:
    name = parameter.name
    if isinstance(value, Mapping):
        missing = [key for key in ids if key not in value]
        if missing:
            raise ConfigError(f"{name}: no value for {', '.join(map(repr, missing))}")
        return tuple(_scalar(parameter, value[key], f"{name}[{key!r}]") for key in ids)
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != len(ids):
            raise ConfigError(f"{name}: {len(value)} values for {len(ids)} models: {list(ids)!r}")
        return tuple(_scalar(parameter, v, f"{name}[{i}]") for i, v in enumerate(value))
    return (_scalar(parameter, value, name),) * len(ids)


def _scalar(parameter: Parameter, value: Any, where: str) -> Scalar | None:
    if value is None and parameter.default is None and not parameter.required:
        return None
    return parameter.validate(value, where)
