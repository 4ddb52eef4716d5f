"""Sifts a config: finds the keys that mergekit 0.1.5 takes and never reads, and takes them out.

Those that never change a result are noted. Of the others an intent is lost: they are problems, or, where the caller
wants what mergekit does, noted too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any, get_args, get_origin

from ..errors import ConfigError, did_you_mean
from ..methods import METHODS
from ..methods.method import Method
from .checks import without_effect
from .parameter_values import parse_setting
from .schema import InputModel, MergeConfig
from .section import Section
from .yaml_text import key_path, short_yaml

#: Keys that never change a result, wherever they stand, with the reason.
HARMLESS = {
    "int8_mask": "masks are stored as bits, if at all",
    "embed_slerp": "mergekit 0.1.5 does not read it either",
}
_PARAMETERS = frozenset(name for method in METHODS.values() for name in method.parameters)


class Sieve:
    """A sieve for one config, with what it took out.

    Attributes:
        notes: a line for each key that has no effect.
        problems: a line for each key that must not be ignored.
    """

    def __init__(self, like_mergekit: bool) -> None:
        self.notes: list[str] = []
        self.problems: list[str] = []
        self._like_mergekit = like_mergekit
        self._method: Method | None = None

    def sift(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the config without the keys that have no effect. What has the wrong shape stays, for the schema."""
        name = data.get("merge_method")
        self._method = METHODS.get(name) if isinstance(name, str) else None
        rest = dict(data)
        if "name" in rest:
            name = short_yaml(rest.pop("name"))
            self.notes.append(f"name: {name} is a remark; it has no effect on the merge")
        kept: dict[Any, Any] = self._section(MergeConfig, rest, "")
        return kept

    def _section(self, kind: type[Section], data: Any, where: str) -> Any:
        if not isinstance(data, Mapping):
            return data
        inner, kept = dict(_sections(kind)), {}
        for key, value in data.items():
            path = key_path(where, key)
            if key not in kind.model_fields:
                self._unknown(kind, key, value, where)
            elif key == "parameters":
                kept[key] = self._parameters(value, path, issubclass(kind, InputModel))
            elif key in inner:
                kept[key] = self._inner(inner[key], value, path, _is_mapping(kind, key))
            else:
                kept[key] = value
        return kept

    def _inner(self, part: type[Section], value: Any, path: str, named: bool) -> Any:
        """Return a section, a list of sections or, if `named`, a mapping of sections, sifted."""
        if isinstance(value, list):
            return [self._section(part, each, f"{path}[{i}]") for i, each in enumerate(value)]
        if isinstance(value, Mapping) and named:
            return {key: self._section(part, v, key_path(path, key)) for key, v in value.items()}
        return self._section(part, value, path)

    def _unknown(self, kind: type[Section], key: Any, value: Any, where: str) -> None:
        begin = f"{where}: " if where else ""
        message = f"{begin}unknown key {short_yaml(key)}"
        if key in HARMLESS:
            self.notes.append(f"{begin}{key} has no effect: {HARMLESS[key]}")
        elif key in kind.not_yet:
            self.problems.append(f"{begin}{kind.not_yet_message(key)}")
        elif key in kind.unread and isinstance(value, (int, float, NoneType)):
            self._lost(f"{begin}mergekit has the key {key!r}, and never reads it")
        elif key in kind.unread:
            self.problems.append(f"{begin}{key} must be a number, not {short_yaml(value)}")
        elif kind.only_here:
            self.problems.append(message + _hint(kind, key))
        else:
            self._lost(message + _hint(kind, key))

    def _parameters(self, data: Any, where: str, of_one_model: bool) -> Any:
        if self._method is None or not isinstance(data, Mapping):
            return data
        kept = {}
        for name, raw in data.items():
            path, spec = key_path(where, name), self._method.parameters.get(name)
            raw = self._conditions(raw, path)
            if spec is not None and not spec.idle and (spec.per_model or not of_one_model):
                kept[name] = raw
                continue
            try:
                if not isinstance(name, str):
                    raise ValueError("must be text: the name of a parameter")
                setting = parse_setting(raw)
                reason = without_effect(self._method, where, name, setting, of_one_model)
            except ConfigError as error:
                self.problems.append(str(error))
            except ValueError as error:
                self.problems.append(f"{path}: {error}")
            else:
                if reason is None:
                    kept[name] = raw
                elif name in HARMLESS:
                    self.notes.append(f"{path} has no effect: {HARMLESS[name]}")
                else:
                    self._lost(reason)
        return kept

    def _conditions(self, raw: Any, where: str) -> Any:
        """Return a setting without the keys of filters that mergekit ignores."""
        if isinstance(raw, list):
            return [self._conditions(each, f"{where}[{i}]") for i, each in enumerate(raw)]
        if not isinstance(raw, Mapping) or not self._like_mergekit:
            return raw
        for key in raw.keys() - {"filter", "value"}:
            self._lost(f"{where}: a filter has no key {short_yaml(key)}")
        return {key: value for key, value in raw.items() if key in ("filter", "value")}

    def _lost(self, message: str) -> None:
        if self._like_mergekit:
            self.notes.append(f"ignored, as mergekit does: {message}")
        else:
            self.problems.append(f"{message} (--like-mergekit ignores it)")


def _sections(kind: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """Yield the fields of a section that hold other ones, with the class of these."""
    for name, field in kind.model_fields.items():
        pending = [field.annotation]
        while pending:
            part = pending.pop()
            pending += get_args(part)
            if isinstance(part, type) and issubclass(part, Section):
                yield name, part


def _is_mapping(kind: type[Section], key: str) -> bool:
    """Whether the field holds a mapping from names to sections."""
    annotation = kind.model_fields[key].annotation
    return any(get_origin(part) is dict for part in (annotation, *get_args(annotation)))


def _hint(kind: type[Section], key: Any) -> str:
    """Return where an unknown key belongs: its place, the most similar key, or all keys."""
    if key in _PARAMETERS and "parameters" in kind.model_fields:
        return "; a parameter stands under `parameters:`"
    for name, part in _sections(kind):
        if key in part.model_fields and key not in ("model", "parameters"):
            return f"; it stands under `{name}:`"
    return did_you_mean(key if isinstance(key, str) else short_yaml(key), kind.model_fields)
