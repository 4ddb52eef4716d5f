"""Maps output tensors to input tensors, for whole models and for slices of layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint.source import Source
from ..config.resolve import Part

# A layer's index has no leading zeros: layers.00 is not layers.0.
LAYER = re.compile(
    r"(?P<before>(?:.*\.)?(?:layers|h|blocks)\.)(?P<index>0|[1-9][0-9]{0,8})(?P<after>\..+)"
)
# Tensors outside the layers that come before them; all others come after. Only `slices` distinguish the two.
_BEFORE_LAYERS = re.compile(r"embed|wte|wpe")


@dataclass(frozen=True, slots=True)
class Placement:
    """One output tensor: the part it belongs to, and the input tensors it is merged from.

    Attributes:
        name: the output tensor's name.
        t: the layer's position in a gradient, from 0 to 1.
        part: the models and parameters.
        tensors: the input tensors' names by model, in the order of the part's models.
    """

    name: str
    t: float
    part: Part
    tensors: Mapping[str, str]


def place_tensors(
    parts: Sequence[Part], sources: Mapping[str, Source], problems: list[str]
) -> Iterator[Placement]:
    """Yield every output tensor in order; add missing layers to `problems`.

    Layers come in the order of the parts. Tensors before the layers come from the first part, tensors after them from
    the last.
    """
    if parts[0].layers is None:
        yield from _place_whole_models(parts[0], sources)
    else:
        yield from _place_slices(parts, sources, problems)


def _place_whole_models(part: Part, sources: Mapping[str, Source]) -> Iterator[Placement]:
    first = sources[part.models[0]]
    layers = _count_layers(first)
    for name in first.tensors:
        match = LAYER.fullmatch(name)
        t = _position(int(match["index"]), layers) if match else 0.0
        yield Placement(name, t, part, dict.fromkeys(part.models, name))


def _place_slices(
    parts: Sequence[Part], sources: Mapping[str, Source], problems: list[str]
) -> Iterator[Placement]:
    yield from _outside(parts[0], sources, before=True)
    out_index = 0
    for part in parts:
        ranges = part.layer_ranges
        for model, (_, end) in ranges.items():
            if end > _count_layers(sources[model]):
                problems.append(
                    f"model {model}: layer_range ends at {end}, but it has "
                    f"{_count_layers(sources[model])} layers"
                )
        start, end = ranges[part.models[0]]
        layers = _by_layer(sources[part.models[0]])
        for offset in range(end - start):
            for before, after in layers.get(start + offset, ()):
                tensors = {m: f"{before}{ranges[m][0] + offset}{after}" for m in part.models}
                name = f"{before}{out_index}{after}"
                yield Placement(name, _position(offset, end - start), part, tensors)
            out_index += 1
    yield from _outside(parts[-1], sources, before=False)


def _outside(part: Part, sources: Mapping[str, Source], before: bool) -> Iterator[Placement]:
    """Yield the tensors outside the layers, either those before the layers or those after."""
    for name in sources[part.models[0]].tensors:
        if not LAYER.fullmatch(name) and bool(_BEFORE_LAYERS.search(name)) == before:
            yield Placement(name, 0.0, part, dict.fromkeys(part.models, name))


def _by_layer(source: Source) -> dict[int, list[tuple[str, str]]]:
    """Return the names of each layer's tensors, as the text before and after the layer's index."""
    layers: dict[int, list[tuple[str, str]]] = {}
    for name in source.tensors:
        if match := LAYER.fullmatch(name):
            layers.setdefault(int(match["index"]), []).append((match["before"], match["after"]))
    return layers


def _count_layers(source: Source) -> int:
    return source.num_layers or max(_by_layer(source), default=-1) + 1


def _position(index: int, layers: int) -> float:
    """Return a layer's position in a gradient: 0 for the first, 1 for the last or only one (mergekit's rule)."""
    return min(index / (layers - 1), 1.0) if layers > 1 else 1.0
