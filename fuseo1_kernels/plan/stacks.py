"""Finds a model's stacks of layers by their container: `model.layers`, `visual.blocks`, `decoder.block`, ..."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..checkpoint.source import Source
from ..errors import counted, printable
from .layer_counts import Section, sections, stated_count, tower

# The leftmost container is the stack: T5's `encoder.block.0.layer.1` lies in layer 0 of `encoder.block`. An index has
# no leading zeros: layers.00 is not layers.0.
_LAYER = re.compile(
    r"(?P<container>(?:.*?\.)?(?:layers?|blocks?|resblocks|h))\.(?P<index>0|[1-9][0-9]{0,8})(?P<after>\..+)"
)
# The parts of a name that say "language model" where a model has several stacks.
_LANGUAGE = {"language_model", "text_model", "text_decoder", "llm"}

# Modules that make the layers' input, by one part of their tensors' names.
_INPUT = re.compile(
    r"(?:\w+_)?(?:embed|embeds|embedding|embeddings|embedder|emb)|embed_(?!out)\w+|wte|wpe|shared|emb_ln"
    r"|word_embeddings_layernorm|layernorm_embedding|project_in|conv1|conv2|pre_layrnorm|pre_layernorm|ln_pre"
    r"|embeddings_project|altup_projections|token_embed_norm|input_norm|feature_extractor"
    r"|feature_projection|cls_token|register_tokens|mask_token"
    r"|relative_attention_bias|per_layer_model_projection|per_layer_projection_norm"
)
# Modules after the layers whose names look like embeddings.
_OUTPUT = re.compile(r"lm_head|un_?embed|output_embeddings?|(?:bbox|class|cls)_embed")


@dataclass(frozen=True)
class Layer:
    """The place of a tensor in a stack: `container`.`index``after`."""

    container: str
    index: int
    after: str


@dataclass(frozen=True)
class Stack:
    """The layers of one container.

    Attributes:
        container: what their tensors' names begin with, such as `model.layers`.
        layers: by index, what follows the index in the names of the layer's tensors.
        length: the number of layers that config.json states, or else that the tensors show. Layers beyond it predict
            further tokens.
        sections: the parts of config.json that describe these layers; empty if none is known.
    """

    container: str
    layers: Mapping[int, tuple[str, ...]]
    length: int
    sections: tuple[Section, ...]

    @property
    def predicts_further(self) -> bool:
        """Whether the layers beyond `length` are no mistake: DeepSeek-V3's predict further tokens."""
        return any(section.values.get("num_nextn_predict_layers") for section in self.sections)


def position(index: int, length: int) -> float:
    """Return a layer's position in a gradient: 0 for the first, 1 for the last or only one (mergekit's rule)."""
    return min(index / (length - 1), 1.0) if length > 1 else 1.0


def layer_of(name: str) -> Layer | None:
    """Return the layer of a tensor; None if it stands in none."""
    match = _LAYER.fullmatch(name)
    return match and Layer(match["container"], int(match["index"]), match["after"])


def find_stacks(source: Source) -> dict[str, Stack]:
    """Return the model's stacks by container, in the order of its tensors."""
    found: dict[str, dict[int, list[str]]] = {}
    for name in source.tensors:
        if layer := layer_of(name):
            found.setdefault(layer.container, {}).setdefault(layer.index, []).append(layer.after)
    stacks = {}
    for container, layers in found.items():
        described = sections(source.config, container, alone=len(found) == 1)
        length = stated_count(described) or max(layers) + 1
        names = {index: tuple(after) for index, after in layers.items()}
        stacks[container] = Stack(container, names, length, described)
    return stacks


def choose_stack(model: str, stacks: Mapping[str, Stack], asked: str | None) -> Stack | str:
    """Return the stack that `slices` cut: the one that the config names, or the language model's; or the problem."""
    names = [f"{printable(s.container)} ({counted(s.length, 'layer')})" for s in stacks.values()]
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    if not stacks:
        return f"model {model}: `slices` need layers, and none of its tensors' names shows one"
    if asked is not None:
        stack = stacks.get(asked)
        return (
            stack
            or f"slices_of: model {model} has no layers {printable(asked)}.0, .1, ...; it has {listed}"
        )
    if len(stacks) == 1:
        return next(iter(stacks.values()))
    text = [stack for stack in stacks.values() if tower(stack.container) == "text"]
    named = [stack for stack in text if _LANGUAGE & {*stack.container.split(".")}]
    for choice in (text, named):
        if len(choice) == 1:
            return choice[0]
    return f"model {model} has several stacks of layers: {listed}; say with `slices_of:` which one `slices` cut"


def neighbours(container: str, others: Iterable[str]) -> dict[tuple[str, ...], bool]:
    """Return for each other tower whether its output goes into the layers of `container`.

    A tower is keyed by the first parts of its tensors' names, up to where they differ from `container`. Towers of
    images and sound feed the language model, and an encoder feeds its decoder, but not the other way round. Layers
    that predict further tokens feed nothing.
    """
    mine, of_text = container.split("."), tower(container) == "text"
    found = {}
    for other in others:
        parts = other.split(".")
        shared = next(
            (i for i, (a, b) in enumerate(zip(parts, mine, strict=False)) if a != b), len(mine)
        )
        root = tuple(parts[: shared + 1])
        behind = "mtp" in root if of_text else tower(other) == "text"
        found[root] = not (behind or (root[-1] == "decoder" and "encoder" in mine))
    return found


def stands_before(name: str, container: str, towers: Mapping[tuple[str, ...], bool]) -> bool:
    """Whether a tensor outside the layers of `container` belongs to what makes their input.

    That is input embeddings, and the `towers` that feed the layers, with their connectors. Norms, heads and everything
    else come after.
    """
    parts = name.split(".")
    for depth in range(1, len(parts)):
        feeds = towers.get(tuple(parts[:depth]))
        if feeds is not None:
            return feeds
    if tower(container) == "text" and tower(name) != "text":
        return True
    return any(map(_INPUT.fullmatch, parts)) and not any(map(_OUTPUT.fullmatch, parts))
