"""The config as the plan reads it: a list of parts, each with its models, its base and its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import ConfigError, printable
from ..methods.method import Method, Parameter, Scalar
from .parameter_values import Setting, evaluate


@dataclass(frozen=True)
class Scope:
    """One `parameters:` mapping of the config.

    Attributes:
        where: the mapping's key path, such as "slices[0].parameters"; "" for the top level.
        model: the model that the values are for. None: all models.
        parameters: settings by parameter name.
    """

    where: str
    model: str | None
    parameters: Mapping[str, Setting]


@dataclass(frozen=True)
class Part:
    """Output tensors that are merged from the same models: one slice's layers, or whole models.

    Attributes:
        method: the merge method.
        where: the key path of the list that names the models, such as "slices[0].sources".
        module: the name of the entry of `modules` that it belongs to; None: it is of the whole model.
        models: the base first, if there is one; then in config order.
        base: the base model; None for a method without a base.
        layer_ranges: by model, the layers [first, end) to merge; empty for whole models.
        scopes: every `parameters:` mapping that applies to this part. Later ones override earlier ones.
    """

    method: Method
    where: str
    module: str | None
    models: tuple[str, ...]
    base: str | None
    layer_ranges: Mapping[str, tuple[int, int]]
    scopes: tuple[Scope, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        """The models without the base."""
        return tuple(name for name in self.models if name != self.base)

    @cached_property
    def model_set(self) -> Mapping[str, None]:
        """The models, in order, to be looked up."""
        return dict.fromkeys(self.models)

    def values(self, name: str, t: float, tensors: Mapping[str, str]) -> dict[str, Any]:
        """Return every parameter of the method for one output tensor. Per-model parameters are tuples by target.

        Args:
            name: the output tensor's name.
            t: the layer's position in a gradient, from 0 to 1.
            tensors: the input tensors' names by model. As in mergekit, a model's own filters are matched with these.

        Raises:
            ConfigError: a required parameter has no value.
        """
        values: dict[str, Any] = {}
        for spec in self.method.parameters.values():
            if spec.per_model:
                values[spec.name] = tuple(
                    self._required_value(spec, tensors[model], t, model) for model in self.targets
                )
            else:
                values[spec.name] = self._required_value(spec, name, t, None)
        return values

    def value(self, spec: Parameter, tensor: str, t: float, model: str | None = None) -> Any:
        """Return the value of one parameter for one tensor: from the last scope with a value, or the default.

        `t` is i / (n - 1) in layer i of n layers, 1 if n == 1, and 0 outside the layers, as in mergekit. `model`: the
        model that a per-model parameter is for.
        """

        def convert(scalar: Scalar) -> Scalar:
            return spec.validate(scalar, f"parameters.{spec.name}")

        for scope in reversed(self._scopes_of(model)):
            if spec.name in scope.parameters:
                setting = scope.parameters[spec.name]
                value = evaluate(setting, tensor=tensor, t=t, convert=convert)
                if value is not None:
                    # Interpolated integers may be fractions, which `convert` refuses.
                    return convert(value) if spec.kind == "int" else value
        return spec.default

    def missing(self) -> Iterator[str]:
        """Yield a message for every required parameter that has no value in any scope."""
        for spec in self.method.parameters.values():
            for model in self.targets if spec.per_model else (None,):
                scopes = self._scopes_of(model)
                if spec.required and not any(spec.name in scope.parameters for scope in scopes):
                    yield self._missing(spec, model)

    def _scopes_of(self, model: str | None) -> list[Scope]:
        return [*self._shared, *self._own.get(model or "", ())]

    @cached_property
    def _shared(self) -> list[Scope]:
        return [scope for scope in self.scopes if scope.model is None]

    @cached_property
    def _own(self) -> dict[str, list[Scope]]:
        """Scopes of one model each, by model: there may be a thousand. They come after the shared ones."""
        found: dict[str, list[Scope]] = {}
        for scope in self.scopes:
            if scope.model is not None:
                found.setdefault(scope.model, []).append(scope)
        return found

    def _required_value(self, spec: Parameter, tensor: str, t: float, model: str | None) -> Any:
        value = self.value(spec, tensor, t, model)
        if value is None and spec.required:
            raise ConfigError(
                f"tensor {printable(tensor)}: no filter matches it, but {self._missing(spec, model)}"
            )
        return value

    def _missing(self, spec: Parameter, model: str | None) -> str:
        """Return the message for a required parameter without a value."""
        for_model, own = "", ""
        if model is not None:
            for_model = f" for model {model!r}"
            own = "the model's own `parameters:`, or for all models under "
        return (
            f"{self.method.name} needs the parameter {spec.name!r}{for_model}: give it under {own}"
            "the top-level `parameters:`"
        )


def all_scopes(parts: Sequence[Part]) -> list[Scope]:
    """Return every `parameters:` mapping of the config, once."""
    return list({scope.where: scope for part in parts for scope in part.scopes}.values())
