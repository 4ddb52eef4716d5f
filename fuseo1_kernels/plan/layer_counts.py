"""Finds the parts of config.json that describe one stack of layers, and the keys that count them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..checkpoint.config_sections import TEXT_CONFIGS, section_at

Tower = Literal["text", "vision", "audio", "other"]

_TOWERS: tuple[tuple[Tower, re.Pattern[str]], ...] = (
    (
        "other",
        re.compile(
            r"mtp|talker|code_predictor|qformer|perceiver|resampler|\w*projector|connector|merger|neck"
        ),
    ),
    ("audio", re.compile(r"\w*(?:audio|speech)\w*|apm")),
    ("vision", re.compile(r"\w*(?:visual|vision|image|img|video)\w*|(?:\w+_)?vit(?:_\w+)?|vpm")),
)
# Paths of the sections of config.json that describe a tower. The text's may be the top level, too.
_SECTIONS: dict[Tower, tuple[tuple[str, ...], ...]] = {
    "text": TEXT_CONFIGS,
    "vision": (("vision_config",), ("visual",), ("thinker_config", "vision_config")),
    "audio": (("audio_config",), ("speech_config",), ("thinker_config", "audio_config")),
    "other": (),
}
# More layers than any model has, and few enough to enumerate.
MOST_LAYERS = 10_000
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "layers")
_ENCODER_COUNTS = ("encoder_layers", "num_encoder_layers")
_DECODER_COUNTS = ("decoder_layers", "num_decoder_layers")


@dataclass(frozen=True)
class Section:
    """A mapping in config.json that describes a stack of layers.

    Attributes:
        path: its keys from the top.
        values: what it holds.
        counts: its keys that count the layers; where it has none, the one to add.
        count: the number that the first of them states; None if none does.
    """

    path: tuple[str, ...]
    values: Mapping[str, Any]
    counts: tuple[str, ...]
    count: int | None


def tower(container: str) -> Tower:
    """Return what a stack's layers work on, as far as its container's name says."""
    parts = container.split(".")
    return next((kind for kind, word in _TOWERS if any(map(word.fullmatch, parts))), "text")


def sections(config: Mapping[str, Any], container: str, *, alone: bool) -> tuple[Section, ...]:
    """Return what describes the stack, the innermost first. `alone`: the model has no other stack."""
    kind = tower(container)
    sides = [(side,) for side in ("encoder", "decoder") if side in container.split(".")]
    paths = [p for p in (*sides, *_SECTIONS[kind]) if section_at(config, p) is not None]
    if kind == "text" or (alone and not paths):
        paths.append(())
    found = [_section(config, path, container) for path in paths]
    # The top level of a config with sections describes the layers only if it counts as many.
    inner = found[:-1] if () in paths else found
    if inner and () in paths and found[-1].count != (stated_count(inner) or found[-1].count):
        found = inner
    return tuple(s for s in found if s.count is not None) or tuple(found[:1])


def stated_count(described: Sequence[Section]) -> int | None:
    """Return the number of layers that config.json states; None if it states none."""
    return next((section.count for section in described if section.count is not None), None)


def _section(config: Mapping[str, Any], path: tuple[str, ...], container: str) -> Section:
    values = section_at(config, path) or {}
    keys, default = _count_keys(values, container)
    stated = [
        key for key in keys if type(values.get(key)) is int and 0 < values[key] <= MOST_LAYERS
    ]
    if not stated:
        return Section(path, values, (default,), None)
    count = values[stated[0]]
    return Section(path, values, tuple(key for key in stated if values[key] == count), count)


def _count_keys(values: Mapping[str, Any], container: str) -> tuple[tuple[str, ...], str]:
    """Return the keys that may count the stack's layers, and the one that loaders understand where none does."""
    parts = container.split(".")
    if "decoder" in parts and (
        values.get("is_encoder_decoder") is True or any(key in values for key in _DECODER_COUNTS)
    ):
        return _DECODER_COUNTS, "num_decoder_layers"
    if "encoder" in parts or tower(container) == "audio":
        return (*_ENCODER_COUNTS, *_COUNTS), "num_hidden_layers"
    return _COUNTS, "num_hidden_layers"
