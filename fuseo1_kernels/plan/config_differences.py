"""Compares what config.json files say of how weights are computed with: merged weights have one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..checkpoint.config_sections import TEXT_CONFIGS, section_at

Config = Mapping[str, Any]

# Keys of rope_parameters (transformers 5) and rope_scaling that do not scale positions.
_NOT_SCALING = ("rope_theta", "partial_rotary_factor", "type", "rope_type")
#: What most classes take where a config.json does not state a setting.
_USUAL = {"rope_theta": 10000.0}


def differing_settings(first: Config, other: Config) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, first's value, other's value) of each setting that two models state differently.

    A setting that either leaves to its class's default is not compared, but for those that most classes have alike:
    the scaling of positions, which is none, and those of _USUAL.
    """
    for name, read in _SETTINGS.items():
        one, two = read(first), read(other)
        usual = _USUAL.get(name) if first and other else None
        compared = [usual if value is None else value for value in (one, two)]
        if None not in compared and compared[0] != compared[1]:
            yield name, _shown(one), _shown(two)


def _shown(value: Any) -> Any:
    return "not stated" if value is None else value


def ties_embeddings(config: Config) -> bool:
    """Whether the output layer is the embeddings: so transformers has it where a config does not deny it."""
    return bool(config) and _stated("tie_word_embeddings")(config) is not False


def _stated(*names: str) -> Callable[[Config], Any]:
    """A function that returns the first of `names` that a config states, for the whole model or its language model."""

    def read(config: Config) -> Any:
        parts = [section_at(config, path) or {} for path in ((), *TEXT_CONFIGS)]
        values = [part[name] for part in parts for name in names if part.get(name) is not None]
        return values[0] if values else None

    return read


def _rope_theta(config: Config) -> Any:
    # transformers 5 keeps it among `rope_parameters`.
    parameters = _stated("rope_parameters")(config)
    held = parameters.get("rope_theta") if isinstance(parameters, dict) else None
    return _stated("rope_theta", "rotary_emb_base")(config) if held is None else held


def _rope_scaling(config: Config) -> dict[str, Any]:
    scaling = _stated("rope_scaling", "rope_parameters")(config)
    if not isinstance(scaling, dict):
        return {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    numbers = {key: value for key, value in scaling.items() if key not in _NOT_SCALING}
    return {} if kind == "default" and not numbers else {"rope_type": kind} | numbers


_SETTINGS: dict[str, Callable[[Config], Any]] = {
    "architectures": _stated("architectures"),
    "model_type": lambda config: config.get("model_type"),
    "rope_theta": _rope_theta,
    "rope_scaling": _rope_scaling,
    "max_position_embeddings": _stated("max_position_embeddings", "n_positions"),
    "rms_norm_eps": _stated("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"),
    "hidden_act": _stated("hidden_act", "hidden_activation", "activation_function"),
    "tie_word_embeddings": _stated("tie_word_embeddings"),
}
