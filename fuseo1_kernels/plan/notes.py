"""Notes on a plan: tensors left out, other architectures, filters that match nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..checkpoint.source import Source
from ..config.parameter_values import Setting, idle_filters
from ..config.schema import MergeConfig
from ..errors import printable
from .placements import LAYER, Placement


def model_notes(
    config: MergeConfig, sources: Mapping[str, Source], placements: list[Placement]
) -> Iterator[str]:
    used = {part for placement in placements for part in placement.parts}
    first_name, *others = dict.fromkeys(
        name for part in config.parts for name in config.merged_models(part)
    )
    first = sources[first_name]
    whose = "the base" if first_name == config.base_of() else f"model {first_name}"
    for model in others:
        extra = sorted({*sources[model].tensors} - {*first.tensors})
        if (
            config.slices is not None
        ):  # they say which layers are taken, and the last one what follows
            extra = [n for n in extra if (model, n) not in used and not LAYER.fullmatch(n)]
        if extra:
            shown = ", ".join(map(printable, extra[:5])) + (", ..." if len(extra) > 5 else "")
            lacking = "1 tensor that" if len(extra) == 1 else f"{len(extra)} tensors that"
            yield f"model {model}: {lacking} {whose} lacks left out: {shown}"
        ours, theirs = (s.config.get("architectures") for s in (first, sources[model]))
        if ours and theirs and ours != theirs:
            yield f"model {model}: architecture {theirs!r}, {whose}'s is {ours!r}"


def filter_notes(config: MergeConfig, placements: list[Placement]) -> Iterator[str]:
    """A filter that matches nothing is most likely misspelt."""
    for where, parameters, among in _filtered(config, placements):
        for name, setting in parameters.items():
            for pattern in idle_filters(setting, among):
                yield f"{where}{name}: filter {pattern!r} matches no tensor"


def _filtered(
    config: MergeConfig, placements: list[Placement]
) -> Iterator[tuple[str, dict[str, Setting], list[str]]]:
    """Yield parameters with what names them, and the tensors that their filters look at."""
    yield (
        "",
        config.parameters,
        [name for p in placements for name in (p.name, *dict(p.parts).values())],
    )
    for index, source in enumerate(config.models or ()):
        yield f"models[{index}].parameters.", source.parameters, [p.name for p in placements]
    for index, part in enumerate(config.slices or ()):
        among = [p for p in placements if p.out_slice is part]
        names = [name for p in among for name in (p.name, *dict(p.parts).values())]
        yield f"slices[{index}].parameters.", part.parameters, names
        for place, slice_source in enumerate(part.sources):
            own = [dict(p.parts)[slice_source.model] for p in among]
            where = f"slices[{index}].sources[{place}].parameters."
            yield where, slice_source.parameters, own
