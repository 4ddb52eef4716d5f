"""Reads and writes what config.json says layer by layer, in any form: a list, indices, a threshold, a step."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Values = Sequence[Any]
Changes = dict[str, Any]

# Lists of layers' indices. Other lists that are as long as the stack have a value for each layer.
_INDICES = re.compile(
    r"\w*(?:_indices|_indexes|_idxs?|layer_ids)|mlp_only_layers|moe_layers|cross_attention_layers"
    r"|rope_scaling_layers|subsample_layers"
)
# Each of these layers' outputs goes to a module of its own: none may be left out or used twice.
_TAPS = re.compile(r"deepstack_visual_indexes|\w*out_indices|intermediate_\w+_indices")
# Lists that do not speak of layers, however long they are.
_NOT_LAYERS = re.compile(
    r"architectures|\w*token\w*|\w*_ids?|image_\w+|patch_\w+|conv_\w+|tdnn_\w+|depths|hidden_sizes|out_\w+|keys_to_\w+"
)
# Keys that say where the first layers end, and the list that is read instead where it is given.
_THRESHOLDS = {
    "first_k_dense_replace": "mlp_layer_types",
    "num_dense_layers": "mlp_layer_types",
    "max_window_layers": "layer_types",
    "moe_layer_start_index": None,
    "moe_layer_end_index": None,
}
# Keys that say how often something repeats along the layers, and the list that is read instead where it is given.
PERIODS = {
    "sliding_window_pattern": "layer_types",
    "_sliding_window_pattern": "layer_types",
    "full_attention_interval": "layer_types",
    "global_attn_every_n_layers": "layer_types",
    "layer_group_size": "layer_types",
    "attn_layer_period": "layers_block_type",
    "expert_layer_period": None,
    "no_rope_layer_interval": "no_rope_layers",
    "interleave_moe_layer_step": "moe_layers",
    "moe_layer_freq": "mlp_layer_types",
    "moe_layer_interval": None,
    "cross_attention_frequency": None,
    "index_topk_freq": None,
}


@dataclass(frozen=True)
class Trait:
    """One thing that a config says of each layer.

    Attributes:
        key: the key of the config that says it.
        values: by layer.
        write: returns the keys to change so that the config says other values. Raises ValueError if it cannot.
    """

    key: str
    values: Values
    write: Callable[[Values], Changes]


def traits(section: Mapping[str, Any], layers: int) -> dict[str, Trait]:
    """Return everything that a section of config.json says of each of its `layers` layers, by key."""
    found: list[Trait | None] = [_listed(key, value, layers) for key, value in section.items()]
    found += [_threshold(section, key, layers) for key in _THRESHOLDS]
    found += [rule(section, layers) for rule in _RULES]
    found += [_derived(section, key, layers) for key in _DERIVED_KEYS]
    return {trait.key: trait for trait in found if trait is not None}


def period(value: Any) -> int:
    """Return the period that one of the keys of PERIODS states; 1 if it states none."""
    if isinstance(value, str):
        return max(len(value), 1)
    return value if type(value) is int and value > 1 else 1


def _listed(key: str, value: Any, layers: int) -> Trait | None:
    """Return the trait of a list of indices, or of a list with a value for each layer; None for other values."""
    if key == "per_layer_config" and isinstance(value, Mapping):
        stated = {int(i): own for i, own in value.items() if re.fullmatch("[0-9]{1,9}", i)}
        return Trait(key, [stated.get(i) for i in range(layers)], lambda v: {key: _numbered(v)})
    if key == "hybrid_override_pattern" and isinstance(value, str) and len(value) == layers:
        return Trait(key, list(value), lambda v: {key: "".join(v)})
    if key == "block_types" and isinstance(value, list) and value:
        return Trait(key, [value[i % len(value)] for i in range(layers)], lambda v: {key: list(v)})
    if not isinstance(value, list):
        return None
    if _INDICES.fullmatch(key) and all(type(i) is int for i in value):
        if _TAPS.fullmatch(key):
            return Trait(key, _places(value, layers), lambda v: {key: _tapped(v, len(value))})
        return Trait(key, _flags(value, layers), lambda v: {key: _marked(v)})
    if key == "kv_source_layers" and len(value) == layers:
        return Trait(key, [source == i for i, source in enumerate(value)], lambda v: {key: _own(v)})
    if len(value) == layers and not _NOT_LAYERS.fullmatch(key):
        return Trait(key, value, lambda v: {key: list(v)})
    return None


def _numbered(values: Values) -> dict[str, Any]:
    """Return what is not None, by index; indices have leading zeros, as transformers writes them."""
    found = {i: value for i, value in enumerate(values) if value is not None}
    return {str(i).zfill(len(str(max(found)))): value for i, value in found.items()}


def _flags(indices: Sequence[int], layers: int) -> list[bool]:
    chosen = {*indices}
    return [i in chosen for i in range(layers)]


def _marked(flags: Values) -> list[int]:
    return [i for i, flag in enumerate(flags) if flag]


def _places(indices: Sequence[int], layers: int) -> list[int | None]:
    return [indices.index(i) if i in indices else None for i in range(layers)]


def _own(flags: Values) -> list[int]:
    if not all(flags):
        raise ValueError("layers that use another layer's keys cannot be moved")
    return list(range(len(flags)))


def _tapped(places: Values, number: int) -> list[int]:
    tapped = [(place, i) for i, place in enumerate(places) if place is not None]
    if [place for place, _ in tapped] != list(range(number)):
        raise ValueError("each of its layers must be in the output once, in this order")
    return [i for _, i in tapped]


def _threshold(section: Mapping[str, Any], key: str, layers: int) -> Trait | None:
    """Return whether each layer stands before the one that `key` names."""
    stated = section.get(key)
    if type(stated) is not int or stated < 0:
        return None
    last = int(
        key == "moe_layer_end_index"
    )  # the last of the layers; the others name the one behind them
    # Qwen2 reads max_window_layers only where windows are used at all.
    instead = section.get(_THRESHOLDS[key] or "")
    idle = bool(instead) or (key == "max_window_layers" and not section.get("use_sliding_window"))

    def write(before: Values) -> Changes:
        lead = next((i for i, flag in enumerate(before) if not flag), len(before))
        if any(before[lead:]) and not idle:
            raise ValueError("it cannot name layers other than the first ones")
        return {key: stated if lead == len(before) <= stated else lead - last}

    return Trait(key, [i < stated + last for i in range(layers)], write)


def _sparse_step(section: Mapping[str, Any], layers: int) -> Trait | None:
    """Return which layers of a Qwen MoE are dense: those listed, and those between the steps."""
    step, listed = section.get("decoder_sparse_step"), section.get("mlp_only_layers")
    if type(step) is not int or step < 1 or not isinstance(listed, list):
        return None
    dense = [i in listed or (i + 1) % step != 0 for i in range(layers)]
    return Trait(
        "mlp_only_layers",
        dense,
        lambda v: {"mlp_only_layers": _marked(v), "decoder_sparse_step": 1},
    )


def _attention_types(section: Mapping[str, Any], layers: int) -> Trait | None:
    """Return GPT-Neo's [[pattern, repetitions], ...]."""
    spread: list[Any] = []
    try:
        for pattern, times in section.get("attention_types") or ():
            if not 0 < len(pattern) * times <= layers:
                return None
            spread += list(pattern) * times
    except (TypeError, ValueError):
        return None
    if len(spread) != layers:
        return None
    return Trait("attention_types", spread, lambda v: {"attention_types": [[list(v), 1]]})


def _shared_keys(section: Mapping[str, Any], layers: int) -> Trait | None:
    """Return which layers use the keys of earlier ones: the last ones, in Gemma 3n. The earlier ones must stay."""
    key = "num_kv_shared_layers"
    number = section.get(key)
    if type(number) is not int or not 0 < number <= layers:
        return None
    own = list(range(layers - number))

    def write(values: Values) -> Changes:
        if [*values[: len(own)]] != own or any(value is not None for value in values[len(own) :]):
            raise ValueError("the layers whose keys others use must stay where they are")
        return {key: len(values) - len(own)}

    return Trait(key, [*own, *[None] * number], write)


def _backbone(section: Mapping[str, Any], layers: int) -> Trait | None:
    """Return what a backbone that gives out its last layer alone, as DINOv2 does by default, says of each layer."""
    if section.get("out_indices") != [layers] or type(section["out_indices"][0]) is not int:
        return None

    def write(each: Values) -> Changes:
        last = len(each)
        names = ["stem", *(f"stage{i}" for i in range(1, last + 1))]
        stages = {"out_features": names[-1:], "stage_names": names, "out_indices": [last]}
        return {key: value for key, value in stages.items() if key in section}

    return Trait("out_indices", [True] * layers, write)


def _every(
    keys: Sequence[str], default: int, last: Any, other: Any, shift: int = 1
) -> Callable[[Mapping[str, Any], int], list[Any] | None]:
    """Return a rule: the last of every so many layers is `last`, the others are `other`."""

    def derive(section: Mapping[str, Any], layers: int) -> list[Any] | None:
        every = next((section[key] for key in keys if key in section), default)
        if type(every) is not int or every < 1:
            return None
        return [last if (i + shift) % every == 0 else other for i in range(layers)]

    return derive


def _last_is_full(section: Mapping[str, Any], layers: int) -> Trait | None:
    """Return Gemma 4's types of layers: transformers gives the last one full attention, whatever is stated."""
    types = section.get("layer_types")
    if section.get("model_type") not in _LAST_IS_FULL:
        return None
    if not isinstance(types, list) or len(types) != layers:
        return None

    def write(values: Values) -> Changes:
        if values[-1] != _FULL:
            raise ValueError("the last layer must be one of full attention")
        return {"layer_types": list(values)}

    return Trait("layer_types", types, write)


_RULES = (_sparse_step, _attention_types, _shared_keys, _backbone, _last_is_full)
_LAST_IS_FULL = (
    "gemma4_text",
    "gemma4_unified_text",
    "diffusion_gemma_text",
    "embedding_gemma2_text",
)
_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
_PATTERN = ("sliding_window_pattern", "_sliding_window_pattern")
_GLOBAL, _INTERVAL = ("global_attn_every_n_layers",), ("full_attention_interval",)
_NO_ROPE = ("no_rope_layer_interval",)
# Rules by which architectures derive a list from the layer's index if config.json has none, by key and model_type.
DERIVED = {
    ("layer_types", "afmoe"): _every(_GLOBAL, 4, _FULL, _SLIDING),
    ("layer_types", "bailing_hybrid"): _every(("layer_group_size",), 6, _FULL, _LINEAR),
    ("layer_types", "cohere2"): _every(_PATTERN, 4, _FULL, _SLIDING),
    ("layer_types", "cwm"): _every((), 4, _FULL, _SLIDING, shift=0),
    ("layer_types", "exaone4"): _every(_PATTERN[:1], 4, _FULL, _SLIDING),
    ("layer_types", "exaone_moe"): _every(_PATTERN[:1], 4, _FULL, _SLIDING),
    ("layer_types", "gemma2"): _every((), 2, _FULL, _SLIDING),
    ("layer_types", "gemma3_text"): _every(_PATTERN, 6, _FULL, _SLIDING),
    ("layer_types", "gemma3n_text"): _every((), 5, _FULL, _SLIDING),
    ("layer_types", "gpt_oss"): _every((), 2, _FULL, _SLIDING),
    ("layer_types", "granite_swa"): _every((), 4, _FULL, _SLIDING, shift=0),
    ("layer_types", "granitemoe_swa"): _every((), 4, _FULL, _SLIDING, shift=0),
    ("layer_types", "inkling2_text"): _every((), 6, "hybrid", "hybrid_sliding"),
    ("layer_types", "kolibri1"): _every((), 5, _FULL, _SLIDING),
    ("layer_types", "minimax"): _every((), 2, _LINEAR, _FULL),
    ("layer_types", "modernbert"): _every(_GLOBAL, 3, _FULL, _SLIDING, shift=0),
    ("layer_types", "modernbert-decoder"): _every(_GLOBAL, 3, _FULL, _SLIDING, shift=0),
    ("layer_types", "olmo3"): _every((), 4, _FULL, _SLIDING),
    ("layer_types", "qwen3_5_moe_text"): _every(_INTERVAL, 4, _FULL, _LINEAR),
    ("layer_types", "qwen3_5_text"): _every(_INTERVAL, 4, _FULL, _LINEAR),
    ("layer_types", "qwen3_next"): _every(_INTERVAL, 4, _FULL, _LINEAR),
    ("layer_types", "qwen4_exp_text"): _every(_INTERVAL, 4, "indexed_attention", _LINEAR),
    ("layer_types", "t5_gemma_module"): _every((), 2, _FULL, _SLIDING),
    ("layer_types", "t5gemma2_decoder"): _every(_PATTERN[:1], 6, _FULL, _SLIDING),
    ("layer_types", "t5gemma2_text"): _every(_PATTERN[:1], 6, _FULL, _SLIDING),
    ("layer_types", "vaultgemma"): _every((), 2, _FULL, _SLIDING),
    ("no_rope_layers", "smollm3"): _every(_NO_ROPE, 4, 0, 1),
    ("no_rope_layers", "llama4_text"): _every(_NO_ROPE, 4, 0, 1),
    ("no_rope_layers", "mistral_large4_text"): _every(_NO_ROPE, 4, 0, 1),
    ("moe_layers", "llama4_text"): _every(("interleave_moe_layer_step",), 1, True, False),
}
_DERIVED_KEYS = tuple(dict.fromkeys(key for key, _ in DERIVED))
# Lists that architectures derive by other rules: config.json must have them before layers can be moved.
TO_STATE = {
    "activation_sparsity_pattern": {"gemma3n_text"},
    "indexer_types": {"hy_v4"},
    "layer_rope_theta": {"muse_glimmer_text", "muse_spark_text"},
    "layer_types": {
        *("beam", "cohere2_moe", "deepseek_v4", "diffusion_gemma_text", "dots3_note_text"),
        *("embedding_gemma2_text", "flint", "gemma4_text", "gemma4_unified_text", "glm5_next_text"),
        *("inkling_text", "kimi_linear", "lfm3", "lfm3_vl_vision", "mimo_v2_flash"),
        *("muse_glimmer_text", "muse_glimmer_vision", "muse_spark_text", "muse_spark_vision"),
        *("neomme", "olmo_hybrid", "ultrabert"),
    },
    "layers_block_type": {"zamba"},
    "per_layer_config": {"dots3_note_text", "neomme"},
}


def unstated(section: Mapping[str, Any]) -> list[str]:
    """Return the keys that config.json leaves to an architecture whose rule is not known here."""
    kind = str(section.get("model_type"))
    return [key for key, kinds in TO_STATE.items() if kind in kinds and section.get(key) is None]


def _derived(section: Mapping[str, Any], key: str, layers: int) -> Trait | None:
    """Return a list that config.json leaves to the architecture."""
    rule = DERIVED.get((key, str(section.get("model_type"))))
    if rule is None or section.get(key) or (key == "moe_layers" and section.get(key) == []):
        return None
    values = rule(section, layers)
    if values is None:
        return None
    indices = key == "moe_layers"
    return Trait(key, values, lambda v: {key: _marked(v) if indices else list(v)})
