"""Maps output tensors to input tensors, for whole models and for slices of layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..checkpoint.source import Source
from ..config.schema import MergeConfig, OutputSlice

# Numbered as Python writes numbers: layers.00 is not a second layers.0.
LAYER = re.compile(
    r"(?P<before>(?:.*\.)?(?:layers|h|blocks)\.)(?P<index>0|[1-9][0-9]{0,8})(?P<after>\..+)"
)


# Outside the layers, these come before them; the others after. It matters for `slices` alone.
_BEFORE_LAYERS = re.compile(r"embed|wte|wpe")


@dataclass(frozen=True)
class Placement:
    """An output tensor by name: which tensor of which model goes into it, as `merged_models` orders them."""

    name: str
    t: float
    out_slice: OutputSlice | None
    parts: tuple[tuple[str, str], ...]  # (model, its tensor's name)


def place_whole_models(config: MergeConfig, sources: Mapping[str, Source]) -> Iterator[Placement]:
    models = config.merged_models()
    first = sources[models[0]]
    layers = _count_layers(first)
    for name in first.tensors:
        match = LAYER.fullmatch(name)
        t = _position(int(match["index"]), layers) if match else 0.0
        yield Placement(name, t, None, tuple((model, name) for model in models))


def place_slices(
    config: MergeConfig, sources: Mapping[str, Source], problems: list[str]
) -> Iterator[Placement]:
    """Layers in the slices' order; what stands before them from the first slice, after from the last."""
    assert config.slices is not None
    first, last = config.slices[0], config.slices[-1]
    yield from _outside(config, sources, first, before=True)
    out_index = 0
    for part in config.slices:
        models = config.merged_models(part)
        ranges = {source.model: source.layer_range for source in part.sources}
        for model, (_, end) in ranges.items():
            if end > _count_layers(sources[model]):
                problems.append(
                    f"model {model}: layer_range ends at {end}, but it has "
                    f"{_count_layers(sources[model])} layers"
                )
        start, end = ranges[models[0]]
        layers = _by_layer(sources[models[0]])
        for offset in range(end - start):
            for before, after in layers.get(start + offset, ()):
                parts = tuple((m, f"{before}{ranges[m][0] + offset}{after}") for m in models)
                name = f"{before}{out_index}{after}"
                yield Placement(name, _position(offset, end - start), part, parts)
            out_index += 1
    yield from _outside(config, sources, last, before=False)


def _outside(
    config: MergeConfig, sources: Mapping[str, Source], part: OutputSlice, before: bool
) -> Iterator[Placement]:
    models = config.merged_models(part)
    for name in sources[models[0]].tensors:
        if not LAYER.fullmatch(name) and bool(_BEFORE_LAYERS.search(name)) == before:
            yield Placement(name, 0.0, part, tuple((model, name) for model in models))


def _by_layer(source: Source) -> dict[int, list[tuple[str, str]]]:
    layers: dict[int, list[tuple[str, str]]] = {}
    for name in source.tensors:
        if match := LAYER.fullmatch(name):
            layers.setdefault(int(match["index"]), []).append((match["before"], match["after"]))
    return layers


def _count_layers(source: Source) -> int:
    return source.num_layers or max(_by_layer(source), default=-1) + 1


def _position(index: int, layers: int) -> float:
    """Where a layer stands in a gradient: 0 the first, 1 the last (mergekit's rule)."""
    return min(index / (layers - 1), 1.0) if layers > 1 else 1.0
