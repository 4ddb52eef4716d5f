"""The settings of parameters in a config: a scalar, a layer gradient, or a list of filters.

    select_topk: 0.5              # a scalar
    select_topk: [0.1, 0.9]       # a gradient: interpolated from the first layer to the last
    select_topk:                  # filters: the first that matches the tensor's name wins
      - filter: mlp
        value: [0.5, 0.7]
      - value: 1.0

The meaning is that of mergekit 0.1.5. The method's parameters (`methods/`) decide which scalars are valid.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..methods.method import Scalar
from .yaml_text import short_yaml

Gradient = tuple[Scalar, ...]


@dataclass(frozen=True)
class Condition:
    """One entry of a filter list: `value` for the tensors that `filter` matches."""

    filter: str | None
    value: Scalar | Gradient

    def matches(self, tensor: str) -> bool:
        """Whether the tensor's name contains `filter`; None and "*" match every tensor."""
        return self.filter is None or self.filter == "*" or self.filter in tensor


Setting = Scalar | Gradient | tuple[Condition, ...]


def parse_setting(raw: Any) -> Setting:
    """Return plain data from YAML as a Setting. Raises ValueError, without the key's path."""
    if isinstance(raw, Mapping):
        return (_condition(raw),)
    if isinstance(raw, (list, tuple)) and any(isinstance(entry, Mapping) for entry in raw):
        return tuple(_condition(entry) for entry in raw)
    return _scalar_or_gradient(raw)


def setting_as_data(setting: Setting) -> Any:
    """Return `setting` as lists, mappings and scalars: the inverse of `parse_setting`."""
    if not isinstance(setting, tuple):
        return setting
    return [_condition_as_data(e) if isinstance(e, Condition) else e for e in setting]


def scalars(setting: Setting) -> Iterator[tuple[str, Scalar]]:
    """Yield (path, scalar) for every scalar in `setting`; a path is such as `[0].value[1]`."""
    if not isinstance(setting, tuple):
        yield "", setting
        return
    for index, entry in enumerate(setting):
        if isinstance(entry, Condition):
            for path, scalar in scalars(entry.value):
                yield f"[{index}].value{path}", scalar
        else:
            yield f"[{index}]", entry


def idle_filters(setting: Setting, tensors: Sequence[str]) -> list[str]:
    """Return the filters in `setting`, each once, that match none of `tensors`. None and "*" match every tensor."""
    filters = setting if isinstance(setting, tuple) else ()
    return list(
        dict.fromkeys(
            str(entry.filter)
            for entry in filters
            if isinstance(entry, Condition)
            and entry.filter not in (None, "*")
            and not any(map(entry.matches, tensors))
        )
    )


def idle_gradients(
    setting: Setting, tensors: Sequence[str], layered: Sequence[str]
) -> Iterator[str | None]:
    """Yield the filter, or None, of every gradient in `setting` that applies to some of `tensors`, but to no layer's.

    `layered`: those of `tensors` that stand in layers.
    """
    if not isinstance(setting, tuple):
        return
    if not isinstance(setting[0], Condition):
        conditions: tuple[Any, ...] = (Condition(None, setting),)
    else:
        conditions = setting
    rest, rest_layered = list(tensors), list(layered)
    for entry in conditions:
        gradient = isinstance(entry.value, tuple) and len(entry.value) > 1
        found = any(map(entry.matches, rest))
        if gradient and found and not any(map(entry.matches, rest_layered)):
            yield entry.filter
        rest = [name for name in rest if not entry.matches(name)]
        rest_layered = [name for name in rest_layered if not entry.matches(name)]


def evaluate(
    setting: Setting, *, tensor: str, t: float, convert: Callable[[Scalar], Scalar]
) -> Scalar | None:
    """Return the value of `setting` for one tensor, or None if no filter matches it.

    Args:
        setting: as in the config.
        tensor: the name that filters are matched with.
        t: the layer's position in a gradient, in [0, 1].
        convert: turns a scalar into the parameter's type. Numbers are then interpolated; of text and booleans the
            last entry at or before `t` is taken.
    """
    if not isinstance(setting, tuple):
        return convert(setting)
    values = []
    for entry in setting:
        if not isinstance(entry, Condition):
            values.append(convert(entry))
        elif entry.matches(tensor):
            return evaluate(entry.value, tensor=tensor, t=t, convert=convert)
    return _at(values, t) if values else None


def _at(values: list[Scalar], t: float) -> Scalar:
    """Return the value of the gradient `values` at `t`."""
    position = t * (len(values) - 1)
    index = int(position)
    low, high = values[index], values[min(index + 1, len(values) - 1)]
    if isinstance(low, (bool, str)) or isinstance(high, (bool, str)):
        return low
    share = position - index
    return (1 - share) * low + share * high


def _scalar_or_gradient(raw: Any) -> Scalar | Gradient:
    if not isinstance(raw, (list, tuple)):
        return _scalar(raw)
    if not raw:
        raise ValueError("is an empty list: give a value, or leave the parameter out")
    return tuple(_scalar(entry) for entry in raw)


def _scalar(raw: Any) -> Scalar:
    if isinstance(raw, int) and abs(raw) > sys.float_info.max:
        raise ValueError(f"is too large a number: {short_yaml(raw)}")
    if isinstance(raw, (bool, int, float, str)):
        return raw
    raise ValueError(
        f"must be a value, a list of values or a list of filters, not {short_yaml(raw)}"
    )


def _condition(raw: Any) -> Condition:
    if not isinstance(raw, Mapping):
        raise ValueError(
            f"mixes filters with the plain value {short_yaml(raw)}: use one or the other"
        )
    if "value" not in raw or not raw.keys() <= {"filter", "value"}:
        keys = ", ".join(map(short_yaml, raw)) or "none"
        raise ValueError(f"a filter takes the keys `filter` and `value`, not: {keys}")
    pattern = raw.get("filter")
    if not (pattern is None or (isinstance(pattern, str) and pattern.isprintable())):
        raise ValueError(f"`filter` must be a part of a tensor's name, not {short_yaml(pattern)}")
    return Condition(pattern, _scalar_or_gradient(raw["value"]))


def _condition_as_data(condition: Condition) -> dict[str, Any]:
    data = {} if condition.filter is None else {"filter": condition.filter}
    return {**data, "value": setting_as_data(condition.value)}
