"""Finds tensors that are one tensor under several names: tied embeddings, shared layers.

Their random masks are drawn once, so that they stay equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..checkpoint.source import Source
from .config_differences import ties_embeddings
from .placements import Placement


def find_aliases(
    placements: Sequence[Placement],
    sources: Mapping[str, Source],
    is_embedding: Callable[[str, tuple[int, ...]], bool],
) -> dict[str, str]:
    """Return, by output name, the first of the names of the same tensor, for all but the first.

    Two names mean one tensor if they have the same bytes of a file in the part's first model, as torch stores tied
    tensors, or if config.json ties the embeddings and both are embeddings of one shape. A layer that slices repeat is
    no alias: each copy draws its own masks.
    """
    first: dict[object, tuple[str, str]] = {}  # the output's name and the input's
    aliases: dict[str, str] = {}
    for placement in placements:
        model, tensor = next(iter(placement.tensors.items()))
        info = sources[model].tensors.get(tensor)
        if info is None or info.nbytes == 0:
            continue
        places: list[object] = [(info.file, info.offset, info.dtype, info.shape)]
        if is_embedding(placement.name, info.shape) and ties_embeddings(sources[model].config):
            places.append((model, info.shape))
        found = [first[place] for place in places if place in first]
        known = next((name for name, source in found if source != tensor), placement.name)
        if known != placement.name:
            aliases[placement.name] = known
        for place in places:
            first.setdefault(place, (known, tensor))
    return aliases
