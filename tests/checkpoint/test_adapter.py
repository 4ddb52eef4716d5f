"""Adapters that are refused: one message names the file, the key or the tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fuseo1_kernels.checkpoint.adapter import open_adapter
from fuseo1_kernels.config.load import as_config
from fuseo1_kernels.engine.dry_run import dry_run
from fuseo1_kernels.errors import CheckpointError, MergeError
from support.models import base_state, model_config, write_model

Q = "model.layers.0.self_attn.q_proj"
IN = f"base_model.model.{Q}"
HIDDEN = 32
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
PAIR: dict[str, tuple[int, ...]] = {
    f"{IN}.lora_A.weight": (4, HIDDEN),
    f"{IN}.lora_B.weight": (HIDDEN, 4),
}


def write_adapter(path: Path, shapes: Mapping[str, tuple[int, ...]], **config: Any) -> Path:
    path.mkdir()
    save_file({n: torch.ones(s) for n, s in shapes.items()}, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return path


@pytest.mark.parametrize(
    ("config", "words"),
    [
        *(
            ({"peft_type": kind}, f"an adapter of the kind {kind!r}")
            for kind in ("IA3", "LOHA", "BOFT")
        ),
        ({"peft_type": None}, "an adapter without peft_type"),
        ({"layer_replication": [[0, 2]]}, "layer_replication: this adapter repeats layers"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices: "),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens: "),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"flux_capacitor": 1}, "flux_capacitor: not known"),
        ({"r": 0}, "r must be a whole number of at least 1, not 0"),
        ({"r": True}, "r must be a whole number"),
        ({"r": 10**400}, "r must be a number that fp64 holds"),
        ({"alpha_pattern": {"q_proj": -(10**400)}}, "'q_proj' must be a number that fp64 holds"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number, not '8'"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a number"),
        ({"use_dora": "yes"}, "use_dora must be true or false"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern.'q_proj' must be a whole number"),
        ({"rank_pattern": {"(": 4}}, "no regular expression"),
        ({"alpha_pattern": {"(a+)+b": 4}}, "too intricate a regular expression"),
        ({"alpha_pattern": {"a*a*a*a*b": 4}}, "too intricate a regular expression"),
        ({"modules_to_save": "lm_head"}, "modules_to_save must be a list of names"),
        ({"rank_pattern": {"q_proj": 2}}, "gives its module the rank 2"),
        ({"use_dora": True}, "lacks DoRA's magnitudes, but use_dora is True"),
        ({"lora_bias": True}, "lacks a bias, but lora_bias is True"),
    ],
)
def test_the_config(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "adapter", PAIR, **config)
    with pytest.raises(CheckpointError) as refused:
        open_adapter(str(path))
    assert words in str(refused.value) and str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"{IN}.lora_B.weight": None}, f"no lora_A or no lora_B of module {Q}"),
        ({f"{IN}.lora_A.weight": (3, HIDDEN)}, "has the shape [3, 32], but"),
        ({f"{IN}.lora_A.weight": (4,)}, "has the shape [4], but"),
        ({f"{IN}.lora_E.weight": (4, 1)}, "is part of a kind of adapter that is not supported"),
        ({f"{Q}.lora_A.weight": (4, HIDDEN)}, "PEFT's names begin with 'base_model.model.'"),
        (
            {f"{IN}.lora_A.default.weight": (4, HIDDEN)},
            "the file has another lora_A of this module",
        ),
        (
            {f"{IN}.lora_magnitude_vector": (HIDDEN,)},
            "has DoRA's magnitudes, but use_dora is False",
        ),
        (
            {
                "base_model.model.a.lora_A.x.weight": (4, 2),
                "base_model.model.a.lora_B.y.weight": (2, 4),
            },
            "holds tensors of several adapters (x, y)",
        ),
    ],
)
def test_the_tensors(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    shapes = {name: shape for name, shape in {**PAIR, **changes}.items() if shape is not None}
    path = write_adapter(tmp_path / "adapter", shapes)
    with pytest.raises(CheckpointError) as refused:
        open_adapter(str(path))
    assert words in str(refused.value) and str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("shapes", "config", "words"),
    [
        (
            {n.replace("layers.0", "layers.9"): s for n, s in PAIR.items()},
            {},
            "its tensors for model.layers.9.self_attn.q_proj.weight fit no tensor of the model",
        ),
        (
            PAIR | {f"{IN}.lora_B.weight": (HIDDEN + 1, 4)},
            {},
            "fit not model.layers.0.self_attn.q_proj",
        ),
        (
            {"base_model.model.model.embed_tokens.weight": (300, HIDDEN)},
            {},
            "has model.embed_tokens.weight whole with the shape [300, 32]",
        ),
        (
            {"base_model.model.lm_head.weight": (272, HIDDEN)},
            {"modules_to_save": ["lm_head"]},
            "modules_to_save has lm_head.weight, which is tied",
        ),
        (
            {
                "base_model.model.model.embed_tokens.lora_embedding_A": (4, 272),
                "base_model.model.model.embed_tokens.lora_embedding_B": (HIDDEN, 4),
                "base_model.model.lm_head.lora_A.weight": (4, HIDDEN),
                "base_model.model.lm_head.lora_B.weight": (272, 4),
            },
            {},
            "adapts model.embed_tokens.weight twice, because embeddings are tied",
        ),
        (
            PAIR | {f"{IN}.lora_B.bias": (7,)},
            {"lora_bias": True},
            "[7] fit not",
        ),
    ],
)
def test_an_adapter_of_another_model(
    shapes: dict[str, tuple[int, ...]], config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    state = base_state()
    del state["lm_head.weight"]
    model = write_model(tmp_path / "model", state, config=model_config(tie_word_embeddings=True))
    adapter = write_adapter(tmp_path / "adapter", shapes, **config)
    with pytest.raises(MergeError) as refused:
        dry_run(
            as_config({"models": [{"model": f"{model}+{adapter}"}], "merge_method": "passthrough"}),
            None,
        )
    assert words in str(refused.value) and str(adapter) in str(refused.value)
    assert "\n" not in str(refused.value)
