"""Makes the config files of a model whose layers come from other layers, of one model or of several."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint.config_sections import change_section
from ..checkpoint.json_file import dump_object, parse_object
from ..checkpoint.layout import GENERATION_CONFIG
from ..checkpoint.source import Source
from ..config.yaml_text import short_yaml
from ..errors import printable
from .layer_counts import Section, tower
from .layer_traits import PERIODS, Trait, period, traits, unstated
from .stacks import Stack

# Keys that make every layer depend on its index.
_BY_INDEX = ("scale_attn_by_inverse_layer_idx", "linear_attn_config")
_ANY = 1 << 30


@dataclass(frozen=True)
class Origin:
    """The layer that an output layer is merged from."""

    model: str
    stack: Stack
    index: int


def gather_config(
    lender: Source,
    config: Mapping[str, Any],
    stack: Stack,
    origins: Sequence[Origin],
    problems: list[str],
) -> Mapping[str, Any]:
    """Return config.json for output layers from `origins`; add what it cannot express to `problems`.

    Args:
        lender: the model that lends its config.json.
        config: that, as far as it has followed other layers; {} if there is none.
        stack: its layers.
        origins: by output layer.
        problems: what makes the merge impossible.
    """
    found, result = list[str](), dict(config)
    if not config:
        return result
    if not stack.sections:
        found.append(f"it does not tell how many layers {printable(stack.container)} has")
    for section in stack.sections:
        change_section(result, section.path, dict(_changes(section, stack, origins, found)))
    layer = config.get("vision_feature_layer")
    of_towers = tower(stack.container) == "vision"
    if of_towers and not (layer is None or (type(layer) is int and layer < 0)):
        found.append(f"vision_feature_layer ({short_yaml(layer)}) counts from the first layer")
    problems += [f"model {lender.name}: config.json cannot follow the slices: {p}" for p in found]
    return result


def move_alignment_heads(files: dict[str, bytes], layers: Sequence[int]) -> None:
    """Let Whisper's `alignment_heads`, a list of [layer, head], follow the layers of a sliced decoder.

    Args:
        files: the output's small files, by name; generation_config.json, if it is there, is replaced.
        layers: for each of the decoder's layers, its index in the model that it comes from.

    Raises:
        CheckpointError: generation_config.json is damaged.
    """
    settings = parse_object(files.get(GENERATION_CONFIG, b"{}"), GENERATION_CONFIG)
    heads = settings.get("alignment_heads")
    if not isinstance(heads, list) or not all(isinstance(h, list) and len(h) == 2 for h in heads):
        return
    moved = [[new, head] for new, old in enumerate(layers) for layer, head in heads if layer == old]
    files[GENERATION_CONFIG] = dump_object(settings | {"alignment_heads": moved})


def mixed_layers(where: str, origins: Sequence[Sequence[Origin]]) -> Iterator[str]:
    """Yield a note on every model whose layers are of another kind than those that they are merged with.

    Args:
        where: the slice's key path in the config.
        origins: by model, where the slice's layers come from; the first model's kinds go into config.json.
    """
    first, *others = origins
    section = next(iter(first[0].stack.sections), None)
    if section is None:
        return
    own = traits(section.values, first[0].stack.length)
    for other in others:
        kinds = _traits(other[0].stack, section.path)
        for key in [key for key in own if key in kinds]:
            for a, b in zip(first, other, strict=True):
                if _trait_of(own[key], a) != _trait_of(kinds[key], b):
                    yield (
                        f"{where}: {key} of layer {b.index} of model {b.model} is not that of layer "
                        f"{a.index} of model {a.model}; config.json has the latter"
                    )
                    break


def _trait_of(trait: Trait, origin: Origin) -> Sequence[Any]:
    """Return the trait of a layer, as a list; an empty one of a layer that the model has not."""
    return trait.values[origin.index : origin.index + 1]


def _changes(
    section: Section, stack: Stack, origins: Sequence[Origin], problems: list[str]
) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a section that change, with their new values."""
    values = section.values
    changes: dict[str, Any] = dict.fromkeys(section.counts, len(origins))
    of_encoder = "encoder" in stack.container.split(".")
    if of_encoder and "num_layers" in section.counts and values.get("is_encoder_decoder"):
        # T5's decoder has as many layers as its encoder, unless config.json says otherwise.
        changes |= {"num_decoder_layers": values.get("num_decoder_layers") or stack.length}
    if isinstance(values.get("depths"), list):
        problems.append("depths: its layers are stages of different sizes")
    if [origin.index for origin in origins] != [*range(stack.length)]:
        problems += [
            f"{key}: state it; the architecture ({values['model_type']}) derives it from the layer's index"
            for key in unstated(values)
        ]
    own = traits(values, stack.length)
    stacks = {origin.model: origin.stack for origin in origins}
    described = {model: own | _traits(each, section.path) for model, each in stacks.items()}
    for key, trait in own.items():
        try:
            gathered = [value for o in origins for value in _trait_of(described[o.model][key], o)]
            if len(gathered) < len(origins):
                raise ValueError("config.json of another model does not say it of all its layers")
            if gathered != list(trait.values):
                changes |= trait.write(gathered)
        except ValueError as error:
            problems.append(f"{key}: {error}")
    problems += _broken_periods({**values, **changes}, origins)
    for model, said in described.items():
        problems += _undescribed_layers(
            said, values, [o for o in enumerate(origins) if o[1].model == model]
        )
    yield from changes.items()


def _traits(stack: Stack, path: tuple[str, ...]) -> dict[str, Trait]:
    """Return what a model's config says of its layers. What it leaves out, its sibling, the base, says for it."""
    for section in stack.sections:
        if section.path == path:
            return traits(section.values, stack.length)
    return {}


def _broken_periods(values: Mapping[str, Any], origins: Sequence[Origin]) -> Iterator[str]:
    """Yield a problem for each rule by the layer's index that the output's layers do not keep."""
    steps = {
        k: period(values.get(k)) for k, instead in PERIODS.items() if not values.get(instead or "")
    }
    steps |= {key: _ANY for key in _BY_INDEX if values.get(key)}
    for key, every in steps.items():
        for index, origin in enumerate(origins):
            if (index - origin.index) % every:
                yield (
                    f"{key} ({short_yaml(values[key])}) goes by the layer's index: "
                    f"layer {origin.index} of model {origin.model} cannot be layer {index}"
                )
                break


def _undescribed_layers(
    said: Mapping[str, Trait], values: Mapping[str, Any], placed: Sequence[tuple[int, Origin]]
) -> Iterator[str]:
    """Yield a problem where a model's layers hold different tensors and config.json does not say which layers do.

    Then its architecture goes by the layer's index, and an output layer must hold what the model's own of that index
    does. `placed`: the output's layers that come from the model, and their indices.
    """
    stack = placed[0][1].stack

    def held(index: int) -> frozenset[str]:
        return frozenset(stack.layers.get(index, ()))

    kinds: dict[str, frozenset[str]] = {}
    for index in range(stack.length):
        label = [trait.values[index] for trait in said.values() if index < len(trait.values)]
        label += [index % period(values.get(key)) for key in PERIODS]
        if kinds.setdefault(json.dumps(label, sort_keys=True), held(index)) != held(index):
            break
    else:
        return
    for index, origin in placed:
        if held(origin.index) != held(min(index, stack.length - 1)):
            yield (
                f"layers of {printable(stack.container)} hold different tensors, and it does not say which do: "
                f"layer {origin.index} of model {origin.model} cannot be layer {index}"
            )
            return
