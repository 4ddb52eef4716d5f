"""What is known by hand of many architectures: where their layers stand, and what slices of them change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from support import hf_models

# Layers 0, 1, 2, 2, 3, 4, 5: what comes before them is the left model's, what comes after them the right one's.
PICKS = (("left", 0, 3), ("left", 2, 4), ("right", 4, 6))


@dataclass(frozen=True)
class Architecture:
    """A model of transformers, and where its layers stand.

    Attributes:
        make: returns a new model.
        stack: the layers that slices cut, by the module's name.
        edit: writes into the config of the stack what the output's layers change; gets the layers' indices, too.
        after: modules that stand after the layers and have weights of their own.
        others: further stacks, by their modules' names.
        inputs: returns the arguments of a forward call.
        section: the part of the config that describes the stack; "" for the top level.
        slices_of: the container to cut, where it must be said.
        picks: (model, first, end) by slice.
    """

    make: Callable[[], Any]
    stack: str
    edit: Callable[[Any, Sequence[int]], None]
    after: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    inputs: Callable[[Any], dict[str, Any]] | None = None
    section: str = ""
    slices_of: str | None = None
    picks: tuple[tuple[str, int, int], ...] = PICKS

    def model(self, seed: int) -> Any:
        """Return a model with random weights, biases and norms among them, far from small."""
        torch.manual_seed(seed)
        model = self.make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
        return model

    def logits(self, model: Any) -> torch.Tensor:
        torch.manual_seed(9)
        arguments = self.inputs(model) if self.inputs else hf_models.text()
        with torch.no_grad():
            out = model(**arguments)
        logits: torch.Tensor = out.logits if "logits" in out else out.logits_per_text
        return logits

    def config_of_slices(self, config: Any) -> Any:
        """Return the config, written by hand, of the model whose layers are the picks."""
        config = copy.deepcopy(config)
        at = [i for _, first, end in self.picks for i in range(first, end)]
        self.edit(getattr(config, self.section) if self.section else config, at)
        return config


def _count(key: str = "num_hidden_layers") -> Callable[[Any, Sequence[int]], None]:
    return lambda config, at: setattr(config, key, len(at))


def _lists(*keys: str, **values: Any) -> Callable[[Any, Sequence[int]], None]:
    """Per-layer lists are taken by layer; `values` are as they should be."""

    def edit(config: Any, at: Sequence[int]) -> None:
        for key in keys:
            setattr(config, key, [getattr(config, key)[i] for i in at])
        for key, value in {"num_hidden_layers": len(at), **values}.items():
            setattr(config, key, value)

    return edit


def _own_configs(config: Any, at: Sequence[int]) -> None:
    own = config.to_dict()["per_layer_config"]
    _lists("layer_types")(config, at)
    own = {i: own.get(f"{layer:02}") for i, layer in enumerate(at)}
    config.per_layer_config = {i: values for i, values in own.items() if values}


_HEAD = ("model.norm", "lm_head")
_ALTERNATING = ["global", "local", "global", "global", "local", "global", "local"]

#: By name.
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(hf_models.llama, "model.layers", _count(), _HEAD),
    "qwen2": Architecture(
        hf_models.qwen2,
        "model.layers",
        _lists("layer_types", max_window_layers=3),
        _HEAD,
        picks=(("left", 0, 2), ("right", 1, 4)),
    ),
    "gemma2": Architecture(
        hf_models.gemma2, "model.layers", _lists("layer_types"), ("model.norm",)
    ),
    "gemma3": Architecture(
        hf_models.gemma3, "model.layers", _lists("layer_types"), ("model.norm",)
    ),
    "gemma4": Architecture(hf_models.gemma4, "model.layers", _own_configs, ("model.norm",)),
    "mixtral": Architecture(hf_models.mixtral, "model.layers", _count(), _HEAD),
    "qwen3_moe": Architecture(
        hf_models.qwen3_moe,
        "model.layers",
        _lists(mlp_only_layers=[0, 2, 3, 4, 5], decoder_sparse_step=1),
        _HEAD,
    ),
    "deepseek_v3": Architecture(
        hf_models.deepseek,
        "model.layers",
        _lists(first_k_dense_replace=3),
        _HEAD,
        picks=(("left", 0, 2), ("left", 1, 4), ("right", 5, 6)),
    ),
    "gpt_neo": Architecture(
        hf_models.gpt_neo,
        "transformer.h",
        _lists(num_layers=7, attention_types=[[_ALTERNATING, 1]], attention_layers=_ALTERNATING),
        ("transformer.ln_f",),
    ),
    "gpt2": Architecture(hf_models.gpt2, "transformer.h", _count("n_layer"), ("transformer.ln_f",)),
    "gpt_neox": Architecture(
        hf_models.gpt_neox, "gpt_neox.layers", _count(), ("gpt_neox.final_layer_norm", "lm_head")
    ),
    "smollm3": Architecture(
        hf_models.smollm3, "model.layers", _lists("no_rope_layers", "layer_types"), _HEAD
    ),
    "llama4": Architecture(
        hf_models.llama4,
        "model.layers",
        _lists("no_rope_layers", "layer_types", moe_layers=[1, 4, 6]),
        _HEAD,
    ),
    "lfm2": Architecture(
        hf_models.lfm2,
        "model.layers",
        _lists("layer_types", full_attn_idxs=[1, 5]),
        ("model.embedding_norm",),
    ),
    "bert": Architecture(
        hf_models.bert,
        "bert.encoder.layer",
        _count(),
        ("cls.predictions.transform", "cls.predictions.bias", "cls.predictions.decoder.bias"),
    ),
    "electra": Architecture(
        hf_models.electra,
        "electra.encoder.layer",
        _count(),
        ("generator_predictions", "generator_lm_head.bias"),
    ),
    "modernbert": Architecture(
        hf_models.modernbert,
        "model.layers",
        _lists("layer_types"),
        ("model.final_norm", "head", "decoder.bias"),
    ),
    "vit": Architecture(
        hf_models.vit,
        "vit.layers",
        _count(),
        ("vit.layernorm", "classifier"),
        inputs=hf_models.picture,
    ),
    "t5": Architecture(
        hf_models.t5,
        "decoder.block",
        _count("num_decoder_layers"),
        ("decoder.final_layer_norm",),
        ("encoder.block",),
        hf_models.pair,
        slices_of="decoder.block",
    ),
    "whisper": Architecture(
        hf_models.whisper,
        "model.decoder.layers",
        _count("decoder_layers"),
        ("model.decoder.layer_norm",),
        ("model.encoder.layers",),
        hf_models.sound,
        slices_of="model.decoder.layers",
    ),
    "bart": Architecture(
        hf_models.bart,
        "model.decoder.layers",
        _count("decoder_layers"),
        (),
        ("model.encoder.layers",),
        hf_models.pair,
        slices_of="model.decoder.layers",
    ),
    "qwen2_5_vl": Architecture(
        hf_models.qwen2_5_vl,
        "model.language_model.layers",
        _lists("layer_types"),
        ("model.language_model.norm", "lm_head"),
        ("model.visual.blocks",),
        hf_models.qwen_picture,
        "text_config",
    ),
    "gemma3_vl": Architecture(
        hf_models.gemma3_vl,
        "model.language_model.layers",
        _lists("layer_types"),
        ("model.language_model.norm",),
        ("model.vision_tower.encoder.layers",),
        hf_models.with_picture(4),
        "text_config",
    ),
    "clip": Architecture(
        hf_models.clip,
        "text_model.encoder.layers",
        _count(),
        ("text_model.final_layer_norm", "text_projection", "logit_scale"),
        ("vision_model.encoder.layers",),
        hf_models.text_and_picture,
        "text_config",
    ),
}

#: The same models, their other stack cut.
OTHER_STACKS: dict[str, Architecture] = {
    "t5_encoder": Architecture(
        hf_models.t5,
        "encoder.block",
        _count("num_layers"),
        ("encoder.final_layer_norm", "decoder.block", "decoder.final_layer_norm"),
        inputs=hf_models.pair,
        slices_of="encoder.block",
        picks=(("left", 0, 2), ("right", 1, 4)),
    ),
    "whisper_encoder": Architecture(
        hf_models.whisper,
        "model.encoder.layers",
        _count("encoder_layers"),
        ("model.encoder.layer_norm", "model.decoder", "proj_out"),
        inputs=hf_models.sound,
        slices_of="model.encoder.layers",
        picks=(("left", 0, 2), ("right", 1, 4)),
    ),
    "qwen2_5_vl_vision": Architecture(
        hf_models.qwen2_5_vl,
        "model.visual.blocks",
        lambda c, at: c.__dict__.update(depth=6, fullatt_block_indexes=[1, 3, 5]),
        ("model.visual.merger", "model.language_model", "lm_head"),
        inputs=hf_models.qwen_picture,
        section="vision_config",
        slices_of="visual.blocks",
        picks=(("left", 0, 3), ("left", 3, 5), ("right", 7, 8)),
    ),
}
