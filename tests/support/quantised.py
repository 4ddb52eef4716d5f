"""FP8 checkpoints, and an independent decoding of them by torch in fp64."""

from __future__ import annotations

from typing import Any

import torch

from support.models import State

BLOCK = (128, 128)
E4M3_MOST = 448.0


def spread(scales: torch.Tensor, shape: tuple[int, int], block: tuple[int, int]) -> torch.Tensor:
    """Each block's scale at each of its elements."""
    rows, columns = shape
    wide = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return wide[:rows, :columns]


def quantise(
    weight: torch.Tensor, block: tuple[int, int], dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return E4M3 codes of a matrix and its scales, one for each block."""
    rows, columns = weight.shape
    blocks = [-(-n // b) for n, b in zip(weight.shape, block, strict=True)]
    scales = torch.empty(blocks, dtype=torch.float64)
    for i in range(blocks[0]):
        for j in range(blocks[1]):
            part = weight[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            scales[i, j] = part.double().abs().max().clamp(min=1e-8) / E4M3_MOST
    scales = scales.to(dtype)
    codes = weight.double() / spread(scales.double(), (rows, columns), block)
    return codes.float().to(torch.float8_e4m3fn), scales


def decoded(codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """The values, each product rounded once to fp32 (exact in fp64 before)."""
    rows, columns = codes.shape
    wide = spread(scales.double(), (rows, columns), block)
    return (codes.float().double() * wide).float()


def deepseek(state: State, block: tuple[int, int] = BLOCK, **like: Any) -> tuple[State, State]:
    """Return a state with its matrices in DeepSeek's layout, but for embeddings, and the values it stands for."""
    stored: State = {}
    values: State = {}
    for name, tensor in state.items():
        stored[name] = values[name] = tensor
        if tensor.ndim == 2 and "embed" not in name and "lm_head" not in name:
            codes, scales = quantise(tensor, block, **like)
            stored[name], stored[f"{name}_scale_inv"] = codes, scales
            values[name] = decoded(codes, scales, block)
    return stored, values


def fp8_config(block: tuple[int, int] = BLOCK) -> dict[str, Any]:
    """Return what DeepSeek-V3's config.json says of it."""
    return {
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": list(block),
        }
    }
