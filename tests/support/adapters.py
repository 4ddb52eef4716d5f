"""Adapters made by PEFT, of small models of transformers, and what PEFT makes of both in float64."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import torch

from support.tensors import BF16

State = dict[str, torch.Tensor]


def save_model(model: Any, path: Path, dtype: torch.dtype = BF16) -> Path:
    """Save a model of transformers, with random numbers in every tensor, biases and norms too."""
    g = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.05)
    model.to(dtype).save_pretrained(path)
    return path


def load(path: Path, dtype: torch.dtype, model: Any) -> Any:
    return model.from_pretrained(path, dtype=dtype)


def save_adapter(
    base: Path, path: Path, model: Any, *, safe: bool = True, dtype: Any = None, **config: Any
) -> Path:
    """Save an adapter of random numbers for the model at `base`. Keywords are LoraConfig's."""
    g = torch.Generator().manual_seed(len(path.name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(
            load(base, torch.float32, model), peft.LoraConfig(init_lora_weights=False, **config)
        )
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_magnitude" in name:
                    parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=g))
                elif parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.1)
        if dtype is not None:
            adapted = adapted.to(dtype)
        adapted.save_pretrained(path, safe_serialization=safe)
    return path


def merged_by_peft(base: Path, adapter: Path, model: Any) -> State:
    """Return what merge_and_unload gives in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.PeftModel.from_pretrained(
            load(base, torch.float64, model), adapter, autocast_adapter_dtype=False
        ).double()
        merged = adapted.merge_and_unload()
    return {name: tensor.detach() for name, tensor in merged.state_dict().items()}
