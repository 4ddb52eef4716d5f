"""Tells which tensors belong to which entry of `modules`: by mergekit's names, or by how tensors' names begin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ..checkpoint.source import Source
from ..config.resolve import Part
from ..errors import first_names, printable
from .layer_counts import tower
from .stacks import layer_of

Owner = Callable[[str], str | None]

#: mergekit's names of modules, by what is true of their tensors' names.
_KINDS: dict[str, Callable[[str], bool]] = {
    "encoder": lambda name: "encoder" in name.split("."),
    "decoder": lambda name: "decoder" in name.split("."),
    "vision_tower": lambda name: tower(name) == "vision",
    "vision_model": lambda name: tower(name) == "vision",
    "multi_modal_projector": lambda name: tower(name) == "other",
    "text_decoder": lambda name: tower(name) == "text",
}
#: Those that get what no other one has: T5's shared embeddings and head, for example.
_REST = ("default", "shared")


def owner_among(modules: Sequence[str]) -> Owner:
    """Return the function that tells the module of a tensor, or of a stack's container, by its name; None: none has it.

    A module whose name tensors' names begin with comes first, the longest one; then mergekit's. Layers stay together.
    """
    beginnings = sorted(modules, key=len, reverse=True)
    kinds = [name for name in modules if name in _KINDS]
    rest = next((name for name in modules if name in _REST), None)

    def owner(tensor: str) -> str | None:
        layer = layer_of(tensor)
        place = layer.container if layer else tensor
        for name in beginnings:
            if f"{place}.".startswith(f"{name.removesuffix('.')}."):
                return name
        return next((name for name in kinds if _KINDS[name](place)), rest)

    return owner


def check_modules(
    parts: Sequence[Part], sources: Mapping[str, Source], owner: Owner
) -> Iterator[str]:
    """Yield a problem where a tensor belongs to no module, or a module has no tensor."""
    modules = dict.fromkeys(str(part.module) for part in parts)
    first = parts[0].models[0]
    tensors = sources[first].tensors
    without = [name for name in tensors if owner(name) is None]
    if without:
        yield (
            f"model {first}: no entry of `modules` ({', '.join(modules)}) has {first_names(without)}; add one, by what"
            " the tensors' names begin with"
        )
    found = {owner(name) for name in tensors}
    for name in modules:
        if name not in found:
            yield (
                f"modules.{printable(name)}: model {first} has no such tensors; a module is called by what their names"
                f" begin with, or {', '.join((*_KINDS, *_REST))}"
            )
