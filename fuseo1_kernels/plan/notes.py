"""Makes the notes on a plan: tensors left out, differing settings, filters that match no tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from ..checkpoint.source import Source
from ..config.parameter_values import idle_filters, idle_gradients
from ..config.resolve import Part, Scope, all_scopes
from ..errors import printable
from .config_differences import differing_settings
from .placements import Placement
from .stacks import layer_of


def model_notes(
    base: str | None,
    parts: Sequence[Part],
    sources: Mapping[str, Source],
    placements: Sequence[Placement],
    cuts: Collection[str],
) -> Iterator[str]:
    """Yield a note on every model with tensors that are left out, and on every model of other settings.

    `cuts`: the containers of the layers that `slices` cut; none for whole models.
    """
    used: set[tuple[str, str]] = set()
    if cuts:
        used = {item for placement in placements for item in placement.tensors.items()}
    first_name, *others = dict.fromkeys(name for part in parts for name in part.models)
    first = sources[first_name]
    first_label = "the base" if first_name == base else f"model {first_name}"
    for model in others:
        extra = sorted({*sources[model].tensors} - {*first.tensors})
        if cuts:
            # Slices choose their layers on purpose, and tensors outside them may come from another model.
            extra = [n for n in extra if (model, n) not in used and not _in_layers(n, cuts)]
        if extra:
            shown = ", ".join(map(printable, extra[:5])) + (", ..." if len(extra) > 5 else "")
            lacking = "1 tensor that" if len(extra) == 1 else f"{len(extra)} tensors that"
            yield f"model {model}: {lacking} {first_label} lacks left out: {shown}"
        settings = [
            f"{name} {actual!r:.120} ({first_label}'s: {expected!r:.120})"
            for name, expected, actual in differing_settings(first.config, sources[model].config)
        ]
        if settings:
            yield f"model {model}: its config.json differs: {', '.join(settings)}"


def filter_notes(parts: Sequence[Part], placements: Sequence[Placement]) -> Iterator[str]:
    """Yield a note on every filter that matches no tensor: it is most likely misspelt."""
    for scope in _varying(parts):
        tensors = _tensors_in_scope(scope, placements)
        for name, setting in scope.parameters.items():
            for pattern in idle_filters(setting, tensors):
                key = f"{scope.where}.{name}" if scope.where else name
                yield f"{key}: filter {pattern!r} matches no tensor"


def gradient_notes(parts: Sequence[Part], placements: Sequence[Placement]) -> Iterator[str]:
    """Yield a note on every gradient that finds no layers: its first value holds everywhere."""
    layers = [placement for placement in placements if placement.layered]
    for scope in _varying(parts):
        tensors, layered = _tensors_in_scope(scope, placements), _tensors_in_scope(scope, layers)
        for name, setting in scope.parameters.items():
            for pattern in idle_gradients(setting, tensors, layered):
                key = f"{scope.where}.{name}" if scope.where else name
                which = "" if pattern is None else f" among the tensors of filter {pattern!r}"
                yield f"{key}: the gradient finds no layers{which}; its first value holds"


def uneven_models(models: Sequence[str], sources: Mapping[str, Source]) -> Iterator[str]:
    """Yield a problem for every model with tensors that the first one lacks."""
    first = sources[models[0]]
    for model in models[1:]:
        if extra := sorted({*sources[model].tensors} - {*first.tensors}):
            more = f" and {len(extra) - 1} more" if extra[1:] else ""
            yield f"tensor {printable(extra[0])}{more}: in model {model}, but missing in model {models[0]}"


def _varying(parts: Sequence[Part]) -> list[Scope]:
    """Return the scopes in which a setting is not the same for all tensors."""
    return [
        s for s in all_scopes(parts) if any(isinstance(v, tuple) for v in s.parameters.values())
    ]


def _in_layers(name: str, containers: Collection[str]) -> bool:
    layer = layer_of(name)
    return layer is not None and layer.container in containers


def _tensors_in_scope(scope: Scope, placements: Sequence[Placement]) -> list[str]:
    """Return the tensor names that the scope's filters are matched with; for a model's own scope, its tensors'."""
    names: list[str] = []
    for placement in placements:
        if scope not in placement.part.scopes:
            continue
        if scope.model is not None:
            names.append(placement.tensors[scope.model])
        else:
            names += [placement.name, *placement.tensors.values()]
    return names
