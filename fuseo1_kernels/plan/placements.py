"""Maps output tensors to input tensors, for whole models and for slices of layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint.source import Source
from ..config.resolve import Part
from ..errors import printable
from .layer_config import Origin
from .layer_counts import MOST_LAYERS, tower
from .stacks import Stack, choose_stack, find_stacks, layer_of, neighbours, position, stands_before

# Tensors outside the layers that hold a part for each of them: Gemma 3n's embeddings, the weights of layers' outputs.
_BY_LAYER = re.compile(r"\w*per_layer\w*|layer_weights")


@dataclass(frozen=True, slots=True)
class Placement:
    """One output tensor: the part it belongs to, and the input tensors it is merged from.

    Attributes:
        name: the output tensor's name.
        t: the layer's position in a gradient, from 0 to 1.
        part: the models and parameters.
        tensors: the input tensors' names by model, in the order of the part's models.
        layered: whether the tensor stands in a layer.
    """

    name: str
    t: float
    part: Part
    tensors: Mapping[str, str]
    layered: bool = False


@dataclass(frozen=True)
class SlicedStack:
    """The stack that `slices` cut, by its container, and all models' stacks, by model and container."""

    container: str
    stacks: Mapping[str, Mapping[str, Stack]]

    def stack(self, model: str) -> Stack:
        return self.stacks[model][self.container]

    def origins(self, part: Part) -> list[list[Origin]]:
        """Return the layers that a slice is merged from, by model."""
        return [
            [Origin(model, self.stack(model), index) for index in range(*part.layer_ranges[model])]
            for model in part.models
        ]


class _OneName(Mapping[str, str]):
    """Maps every model to the same name, in less memory than a dict: there may be many thousands."""

    __slots__ = ("_models", "_name")

    def __init__(self, models: Collection[str], name: str) -> None:
        self._models, self._name = models, name

    def __getitem__(self, model: str) -> str:
        if model in self._models:
            return self._name
        raise KeyError(model)

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)


def find_sliced_stack(
    parts: Sequence[Part],
    sources: Mapping[str, Source],
    asked: str | None,
    lender: str,
    owns: Callable[[str], bool],
    problems: list[str],
) -> SlicedStack | None:
    """Return the stack that the slices cut; None if that is not clear, with the reason added to `problems`.

    Args:
        parts: the slices.
        sources: the models.
        asked: the container that the config names, or None.
        lender: the model that lends its config.json.
        owns: tells by a name whether a tensor, or a stack, belongs to what is cut.
        problems: what makes the merge impossible. Ranges that end behind a model's layers are added, too.
    """
    first = parts[0].models[0]
    models = dict.fromkeys([first, *(model for part in parts for model in part.models), lender])
    stacks = {
        model: {c: stack for c, stack in find_stacks(sources[model]).items() if owns(c)}
        for model in models
    }
    chosen = choose_stack(first, stacks[first], asked)
    if isinstance(chosen, str):
        problems.append(chosen)
        return None
    container = chosen.container
    lacking = [model for model in models if container not in stacks[model]]
    if lacking:
        problems += [
            f"model {model}: has no layers {printable(container)}.0, .1, ..., which model {first} has"
            for model in lacking
        ]
        return None
    for model in models:
        length = stacks[model][container].length
        if length > MOST_LAYERS:
            problems.append(f"model {model}: {length} layers; at most {MOST_LAYERS} are supported")
            return None
    for part in parts:
        for model, (_, end) in part.layer_ranges.items():
            length = stacks[model][container].length
            if end == 0:
                problems.append(f"{part.where}: layer_range: [0, 0] has no layers")
                return None
            if end > length:
                problems.append(
                    f"model {model}: layer_range ends at {end}, but it has {length} layers"
                )
    return SlicedStack(container, stacks)


def place_whole_models(
    part: Part, sources: Mapping[str, Source], owns: Callable[[str], bool]
) -> Iterator[Placement]:
    """Yield every output tensor of whole models that `owns` has, in the order of the first model's."""
    first = sources[part.models[0]]
    stacks = find_stacks(first)
    for name in filter(owns, first.tensors):
        yield _place(name, part, stacks)


def place_slices(
    parts: Sequence[Part],
    sources: Mapping[str, Source],
    cut: SlicedStack,
    owns: Callable[[str], bool],
) -> Iterator[Placement]:
    """Yield every output tensor of slices that `owns` has, in order.

    Tensors before the layers come from the first slice's models, the layers in the order of the slices, and tensors
    after them from the last slice's models. Stacks that are not cut stay whole.
    """
    yield from _outside(parts[0], sources, cut, owns, before=True)
    number = 0
    for part in parts:
        ranges = part.layer_ranges
        start, end = ranges[part.models[0]]
        layers = cut.stack(part.models[0]).layers
        for offset in range(end - start):
            for after in layers.get(start + offset, ()):
                tensors = {
                    m: f"{cut.container}.{ranges[m][0] + offset}{after}" for m in part.models
                }
                name, t = f"{cut.container}.{number}{after}", position(offset, end - start)
                yield Placement(name, t, part, tensors, layered=True)
            number += 1
    yield from _outside(parts[-1], sources, cut, owns, before=False)
    yield from _predicting(parts[-1], cut, number)


def tensors_by_layer(
    parts: Sequence[Part], sources: Mapping[str, Source], cut: SlicedStack
) -> Iterator[str]:
    """Yield a problem where a tensor outside the layers holds a part for each, and their number or order changes."""
    for part in (parts[0], parts[-1]):
        model = part.models[0]
        stack = cut.stack(model)
        kept = [i for each in parts for i in range(*each.layer_ranges[each.models[0]])]
        if kept == [*range(stack.length)]:
            continue
        for name, tensor in sources[model].tensors.items():
            said = any(map(_BY_LAYER.fullmatch, name.split("."))) and not layer_of(name)
            parted = any(n % stack.length == 0 or n == stack.length + 1 for n in tensor.shape)
            if said and parted and tower(name) == tower(cut.container):
                yield (
                    f"model {model}: tensor {printable(name)} holds a part for each layer of "
                    f"{printable(cut.container)}; `slices` that change their number or order are not supported"
                )
                return


def _outside(
    part: Part,
    sources: Mapping[str, Source],
    cut: SlicedStack,
    owns: Callable[[str], bool],
    before: bool,
) -> Iterator[Placement]:
    """Yield the tensors outside the layers that are cut, either those before these or those after."""
    stacks = cut.stacks[part.models[0]]
    towers = neighbours(cut.container, [c for c in stacks if c != cut.container])
    for name in filter(owns, sources[part.models[0]].tensors):
        layer = layer_of(name)
        inside = layer is not None and layer.container == cut.container
        if not inside and stands_before(name, cut.container, towers) == before:
            yield _place(name, part, stacks)


def _predicting(part: Part, cut: SlicedStack, number: int) -> Iterator[Placement]:
    """Yield the layers behind the last one that predict further tokens, renumbered: the output has `number` others."""
    stack = cut.stack(part.models[0])
    if not stack.predicts_further:
        return
    for index in sorted(i for i in stack.layers if i >= stack.length):
        for after in stack.layers[index]:
            tensors = {
                m: f"{cut.container}.{cut.stack(m).length + index - stack.length}{after}"
                for m in part.models
            }
            name = f"{cut.container}.{number + index - stack.length}{after}"
            yield Placement(name, 1.0, part, tensors, layered=True)


def _place(name: str, part: Part, stacks: Mapping[str, Stack]) -> Placement:
    """Return the placement of a tensor that keeps its name in every model."""
    layer = layer_of(name)
    t = 0.0 if layer is None else position(layer.index, stacks[layer.container].length)
    return Placement(name, t, part, _OneName(part.model_set, name), layer is not None)
