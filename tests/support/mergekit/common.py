"""Stands in for tests/common.py of mergekit 0.1.5, which its source distribution leaves out.

Written from what its tests import and expect: tiny models of four architectures with random weights, and a merge
whose output is looked at. `integrations/test_mergekit_suite.py` copies it beside them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mergekit.config import MergeConfiguration
from mergekit.io import LazyTensorLoader
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from transformers import (
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

#: Of everything that is Llama-shaped here.
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}


def _saved(model: Any, path: str | Path) -> str:
    model.save_pretrained(path, safe_serialization=True)
    return str(path)


def make_picollama(path: str | Path, vocab_size: int = 64) -> str:
    """A Llama of hidden size 32 in `path`; returns `path`."""
    return _saved(LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **TEXT)), path)


def make_picogranite(path: str | Path, vocab_size: int = 64) -> str:
    return _saved(GraniteForCausalLM(GraniteConfig(vocab_size=vocab_size, **TEXT)), path)


def make_gpt2size(path: str | Path, vocab_size: int = 64) -> str:
    """A GPT-2 with as many layers as the smallest of them, 12, but narrow ones."""
    config = GPT2Config(vocab_size=vocab_size, n_ctx=128, n_positions=128, n_embd=32, n_head=4)
    return _saved(GPT2LMHeadModel(config), path)


def make_picoLlaVa(path: str | Path) -> str:
    """A vision model and a Llama in one."""
    vision = CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=32, **TEXT)
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(vocab_size=64, **TEXT), image_token_index=63
    )
    return _saved(LlavaForConditionalGeneration(config), path)


def run_and_check_merge(
    config: MergeConfiguration,
    validate: Callable[[str], None] | None = None,
    auto_arch: bool = False,
) -> None:
    """Merge by `config`; the output has the first model's tensors, none with a NaN, and passes `validate`.

    Of an architecture that mergekit derives from the checkpoints (`auto_arch`) no more is expected.
    """
    with tempfile.TemporaryDirectory() as out:
        run_merge(config, out, options=MergeOptions())
        assert (Path(out) / "config.json").exists()
        merged = LazyTensorLoader.from_disk(out)
        names = set(merged.index.tensor_paths)
        assert names
        for name in names:
            tensor = merged.get_tensor(name)
            assert not torch.isnan(tensor).any(), f"{name} has a NaN"
        if config.models and not config.tokenizer and not config.tokenizer_source:
            source = LazyTensorLoader.from_disk(config.models[0].model.model.path)
            assert names == set(source.index.tensor_paths)
        if validate is not None:
            validate(out)
