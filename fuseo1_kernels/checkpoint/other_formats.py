"""Recognizes what is no model that can be merged: adapters, quantised weights, other formats."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError
from .header import MERGEABLE, TensorInfo
from .json_file import read_object
from .layout import ADAPTER, FORMATS
from .source import Source

#: Files of other programs, and what to do.
_OTHERS = {
    "*.gguf": "llama.cpp's format, mostly quantised: give the model that it was made from",
    "consolidated*.pth": "the format of Meta's own code: convert it to transformers' first",
    "consolidated*.safetensors": "the format of Mistral's own code: give the files in transformers' format",
    "*.h5": "TensorFlow's format: load it with transformers and save it again",
    "*.msgpack": "Flax's format: load it with transformers and save it again",
    "*.onnx": "ONNX: give the model that it was made from",
    "model_index.json": "a diffusers pipeline: give one of its models, a folder such as transformer",
}
_LORA = re.compile(r"(?:.*\.)?lora_(?:A|B|embedding_A|embedding_B)\..*")
#: What GPTQ, AWQ, bitsandbytes, compressed-tensors, fp8 and MXFP4 call the parts of a quantised weight.
_QUANTISED = re.compile(
    r".*[._](?:qweight|qzeros|g_idx|weight_packed|weight_scale|weight_scale_inv|weight_zero_point|absmax|quant_map"
    r"|nested_absmax|SCB|weight_format|bitsandbytes__\w+|blocks|scales)"
)


def no_weights(path: Path) -> CheckpointError:
    """Return the error for a model's directory without weights: it says what is there instead."""
    if (path / ADAPTER).exists():
        stated = read_object(path / ADAPTER).get("base_model_name_or_path")
        base = stated if isinstance(stated, str) else ""
        of = f" of {base}" if base else ""
        return CheckpointError(
            f"{path}: is an adapter{of} ({ADAPTER}), not a whole model: give both, as {base or 'MODEL'}+{path}"
        )
    for pattern, advice in _OTHERS.items():
        found = sorted(path.glob(pattern))
        if found:
            return CheckpointError(f"{path}: holds no weights but {found[0].name}, {advice}")
    names = ", ".join(name for names in FORMATS for name in names)
    return CheckpointError(f"{path}: holds no weights: looked for {names}")


def refusal(source: Source) -> str | None:
    """Return why an opened model is none that can be merged: an adapter, or quantised. None: nothing is known."""
    tensors = source.tensors
    adapter = next((name for name in tensors if _LORA.fullmatch(name)), None)
    if adapter is not None:
        return (
            f"model {source.name}: is an adapter (tensor {adapter!r}), not a whole model: have PEFT save it, in a"
            f" folder with {ADAPTER}, and give both, as MODEL+ADAPTER"
        )
    found = _first_quantised(t for t in tensors.values() if t.name not in source.scales)
    if found is None:
        return None
    stated = source.config.get("quantization_config")
    method = stated.get("quant_method") if isinstance(stated, dict) else None
    by = f" by {method}" if isinstance(method, str) else ""
    return (
        f"model {source.name}: its weights are quantised{by} (tensor {found.name!r} is {found.dtype}): give the model"
        " that it was made from, or dequantise it (transformers: model.dequantize()) and save it in bfloat16"
    )


def _first_quantised(tensors: Iterable[TensorInfo]) -> TensorInfo | None:
    """Return a tensor that only quantised models have; None if there is none."""
    for info in tensors:
        packed = info.dtype not in MERGEABLE and info.dtype not in ("F64", "C64", "BOOL")
        named = info.name.endswith("weight") or _QUANTISED.fullmatch(info.name)
        if info.dtype.startswith("F8") or (packed and named):
            return info
    return None
