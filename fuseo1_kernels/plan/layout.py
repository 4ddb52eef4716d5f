"""Lays out a merge: which tensors the output has, from which ones of the models, and the config.json that follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from ..checkpoint.source import Source
from ..config.resolve import Part
from ..config.schema import MergeConfig
from .layer_config import gather_config, mixed_layers
from .modules import check_modules, owner_among
from .placements import (
    Placement,
    find_sliced_stack,
    place_slices,
    place_whole_models,
    tensors_by_layer,
)
from .stacks import find_stacks


@dataclass
class Layout:
    """The placements of the output's tensors, and the config.json that follows from them.

    Attributes:
        config: as in Plan.
        placements: the output tensors, in order.
        notes: remarks on layers that are merged with others of another kind.
        cuts: by container of layers that `slices` cut: for each output layer its index in the slice's first model.
    """

    config: Mapping[str, Any]
    placements: list[Placement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cuts: dict[str, Sequence[int]] = field(default_factory=dict)

    @property
    def decoder_layers(self) -> Sequence[int] | None:
        """By layer of a decoder that `slices` cut, its index in the slice's first model; else None."""
        return next((cut for name, cut in self.cuts.items() if "decoder" in name.split(".")), None)


def lay_out(
    config: MergeConfig, parts: Sequence[Part], sources: Mapping[str, Source], problems: list[str]
) -> Layout:
    """Return the layout; what makes it impossible is added to `problems`."""
    layout = Layout(sources[config.config_model].config)
    owner = owner_among([part.module for part in parts if part.module is not None])
    if any(part.module is not None for part in parts):
        problems += check_modules(parts, sources, owner)
        if problems:
            return layout
    for module, group in groupby(parts, key=lambda part: part.module):

        def owns(name: str, module: str | None = module) -> bool:
            return module is None or owner(name) == module

        _lay_out_module(layout, config, list(group), sources, owns, problems)
    return layout


def _lay_out_module(
    layout: Layout,
    config: MergeConfig,
    parts: Sequence[Part],
    sources: Mapping[str, Source],
    owns: Callable[[str], bool],
    problems: list[str],
) -> None:
    """Add the tensors that `owns` says belong to the parts' module."""
    if _is_whole(parts, sources, owns):
        layout.placements += place_whole_models(parts[0], sources, owns)
        return
    name = config.config_model
    cut = find_sliced_stack(parts, sources, config.slices_of, name, owns, problems)
    if cut is None:
        return
    problems += tensors_by_layer(parts, sources, cut)
    layout.placements += place_slices(parts, sources, cut, owns)
    origins = [cut.origins(part) for part in parts]
    for part, by_model in zip(parts, origins, strict=True):
        layout.notes += mixed_layers(part.where.removesuffix(".sources"), by_model)
    first = [origin for by_model in origins for origin in by_model[0]]
    layout.config = gather_config(sources[name], layout.config, cut.stack(name), first, problems)
    layout.cuts[cut.container] = [origin.index for origin in first]


def _is_whole(
    parts: Sequence[Part], sources: Mapping[str, Source], owns: Callable[[str], bool]
) -> bool:
    """Whether a module is merged whole: it lists models or, as mergekit writes it, one slice of all its layers."""
    [part, *others] = parts
    if others or part.module is None:
        return not part.layer_ranges
    for model, (first, end) in part.layer_ranges.items():
        stacks = [s for s in find_stacks(sources[model]).values() if owns(s.container)]
        if first != 0 or any(stack.length != end for stack in stacks):
            return False
    return True
