"""Checks of a config that need only a part of it. They raise ConfigError."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..errors import ConfigError
from ..methods.method import Method
from ..methods.rule import TensorSpec
from .parameter_values import Setting, scalars
from .resolve import Part

NO_BASE = "is required: the model that the others were fine-tuned from"


def collect(problems: list[str], check: Callable[..., None], *arguments: Any) -> None:
    """Run a check, and add the lines of its error, if it raises one, to `problems`."""
    try:
        check(*arguments)
    except ConfigError as error:
        problems += map(str, error.args)


def check_spelling(names: Sequence[str]) -> None:
    """Raise ConfigError if one model has two spellings, such as `a`, `./a` and `a/`: it would count twice."""
    spellings: dict[str, str] = {}
    for name in names:
        first = spellings.setdefault(os.path.normpath(name), name)
        if first != name:
            raise ConfigError(f"{first!r} and {name!r} are one model: spell it one way")


def check_sources(part: Part, names: Sequence[str]) -> None:
    """Raise ConfigError unless the method takes the models of one part, each listed once, of as many layers.

    `names` are the models that the config lists for it.
    """
    where, method = part.where, part.method
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigError(f"{where}[{index}].model: {name!r} is listed twice")
    if part.base is None and method.base == "required":
        place = where.removesuffix("sources").removesuffix("models")
        raise ConfigError(f"{place}base_model: {NO_BASE}; or give one for all at the top")
    if not (method.takes(len(part.targets)) or part.base_alone):
        raise ConfigError(_wrong_number(part, names))
    if part.layer_ranges and part.base is not None and part.base not in names:
        raise ConfigError(
            f"{where}: the base {part.base!r} is not among them: add it, with its layer_range"
        )
    lengths = [end - first for first, end in part.layer_ranges.values()]
    if len(set(lengths)) > 1:
        raise ConfigError(
            f"{where}: every layer_range must be as long as the others; "
            f"these have {', '.join(map(str, lengths))} layers"
        )
    if 0 in lengths and part.module is None:
        raise ConfigError(f"{where}: layer_range: [0, 0] has no layers")


def _wrong_number(part: Part, names: Sequence[str]) -> str:
    """Return the message for a method that does not take as many models as a part has; `names` are listed for it."""
    number, method = len(part.targets), part.method
    base = None if part.base is None else f"the base {part.base!r}"
    takes = f"{method.name} merges {method.counts(base)}"
    base_added = part.base is None and len(part.models) > len(names)
    included = f", the base_model {part.models[-1]!r} included" if base_added else ""
    return f"{part.where}: {takes}; here {'is' if number == 1 else 'are'} {number}{included}"


def check_values(part: Part) -> None:
    """Raise ConfigError if the method refuses the part's values together, as far as they are the same for all tensors.

    Values that differ between tensors are looked at when the models' tensors are known.
    """
    settings = [setting for scope in part.scopes for setting in scope.parameters.values()]
    if any(isinstance(setting, tuple) for setting in settings) or part.base_alone:
        return
    values = part.values("", 0.0, dict.fromkeys(part.models, ""))
    spec = TensorSpec.of_shape("", (2, 2), part.targets, part.base is not None, seed=0)
    part.method.rule(values, spec)


def without_effect(
    method: Method, where: str, name: str, setting: Setting, of_one_model: bool
) -> str | None:
    """Return why a parameter has no effect in mergekit; None if it has one, or says no more than the default.

    `where` is the key path of the `parameters:` mapping. `of_one_model`: it belongs to one model. Raises ConfigError
    for a value that mergekit does not take.
    """
    if name not in method.parameters:
        return f"{where}: {method.lacks(name)}"
    spec = method.parameters[name]
    if of_one_model and not spec.per_model:
        return (
            f"{where}.{name}: all models share this parameter: "
            "move it under the top-level `parameters:`"
        )
    if spec.idle:
        unbound = replace(spec, low=-math.inf, high=math.inf)
        for place, scalar in scalars(setting):
            if unbound.validate(scalar, f"{where}.{name}{place}") != spec.default:
                return f"{where}.{name}{place}: {scalar!r} has no meaning for {method.name}; leave it out"
    return None


def check_setting(
    method: Method, where: str, name: str, setting: Setting, of_one_model: bool
) -> None:
    """Raise ConfigError if a parameter has no effect, or if one of the setting's values is invalid.

    The arguments are those of `without_effect`.
    """
    reason = without_effect(method, where, name, setting, of_one_model)
    if reason is not None:
        raise ConfigError(reason)
    for place, scalar in scalars(setting):
        method.parameters[name].validate(scalar, f"{where}.{name}{place}")
