"""Fine-tuned siblings of a Qwen2 model, as Hugging Face checkpoints that load and generate.

    python bench/checkpoints.py DIR --size tiny|small|0.5B [--targets 3] [--rms 1e-3] [--seed 0]

Writes DIR/base, DIR/target-1, ... (random weights, bf16, a tokenizer of bytes) and DIR/merge.yaml, a
FuseO1-shaped recipe that merges them. Needs nothing that the package itself does not need.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fuseo1_kernels.bench.data import BASE_STD, fine_tune
from fuseo1_kernels.checkpoint.header import write_header

#: The first ids are theirs, in this order.
SPECIAL_TOKENS = PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """The dimensions of a Qwen2 model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every tensor; the output layer has one of its own."""
        hidden, kv = self.hidden, self.hidden // self.heads * self.kv_heads
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, hidden)
        }
        for i in range(self.layers):
            layer = {
                "input_layernorm.weight": (hidden,),
                "self_attn.q_proj.weight": (hidden, hidden),
                "self_attn.q_proj.bias": (hidden,),
                "self_attn.k_proj.weight": (kv, hidden),
                "self_attn.k_proj.bias": (kv,),
                "self_attn.v_proj.weight": (kv, hidden),
                "self_attn.v_proj.bias": (kv,),
                "self_attn.o_proj.weight": (hidden, hidden),
                "post_attention_layernorm.weight": (hidden,),
                "mlp.gate_proj.weight": (self.intermediate, hidden),
                "mlp.up_proj.weight": (self.intermediate, hidden),
                "mlp.down_proj.weight": (hidden, self.intermediate),
            }
            shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
        return shapes | {
            "model.norm.weight": (hidden,),
            "lm_head.weight": (self.vocabulary, hidden),
        }


SIZES = {
    "tiny": Size(64, 176, 4, 4, 2, 512),
    "small": Size(512, 1408, 8, 8, 2, 8192),
    # Qwen2.5-0.5B's, but with an output layer of its own: 0.63 B parameters.
    "0.5B": Size(896, 4864, 24, 14, 2, 151936),
}


def parameters(size: Size) -> int:
    """Return how many parameters a model of this size has."""
    return sum(math.prod(shape) for shape in size.shapes().values())


@dataclass(frozen=True)
class Siblings:
    """Directories of a base model and its fine-tunes."""

    base: Path
    targets: tuple[Path, ...]


def make_siblings(
    directory: Path,
    size: str | Size = "tiny",
    targets: int = 3,
    rms: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
) -> Siblings:
    """Write a base model and `targets` fine-tunes of it below `directory`; a str is one of SIZES.

    Fine-tunes are the base plus gaussian task vectors of root mean square `rms`, rounded to bf16. The
    same arguments give the same weights; `device` is where they are drawn.
    """
    if isinstance(size, str):
        size = SIZES[size]
    generator = torch.Generator(device).manual_seed(seed)
    base = {name: _initial(name, shape, generator) for name, shape in size.shapes().items()}
    paths = siblings_in(directory, targets)
    write_model(paths.base, size, base)
    for path in paths.targets:
        tuned = {name: fine_tune(tensor, rms, generator) for name, tensor in base.items()}
        write_model(path, size, tuned)
    return paths


def siblings_in(directory: Path, targets: int) -> Siblings:
    """Return where `make_siblings` writes, or has written, its models."""
    names = [f"target-{i}" for i in range(1, targets + 1)]
    return Siblings(directory / "base", tuple(directory / name for name in names))


def write_model(path: Path, size: Size, tensors: dict[str, torch.Tensor]) -> None:
    """Write one checkpoint: weights in bf16, configuration, tokenizer."""
    path.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    described = [(name, "BF16", tuple(tensors[name].shape)) for name in names]
    with open(path / "model.safetensors", "wb") as file:
        file.write(write_header(described, {"format": "pt"}))
        for name in names:
            file.write(tensors[name].contiguous().cpu().view(torch.int16).numpy().data)
    _write_json(path / "tokenizer.json", byte_tokenizer())
    pad, end = (SPECIAL_TOKENS.index(token) for token in (PAD, END))
    _write_json(path / "config.json", model_config(size, end))
    _write_json(
        path / "generation_config.json",
        {"do_sample": False, "eos_token_id": end, "pad_token_id": pad, "max_new_tokens": 16},
    )
    _write_json(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": PAD,
            "model_max_length": 32768,
            "clean_up_tokenization_spaces": False,
            "chat_template": _CHAT_TEMPLATE,
        },
    )


def byte_tokenizer() -> dict[str, Any]:
    """Return a tokenizer.json with a token for each byte, and the special ones."""
    # GPT-2's characters for bytes: printable Latin-1 for itself, the others from U+0100 on.
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = [*map(chr, sorted(printable)), *(chr(256 + i) for i in range(len(others)))]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags, "special": True}
            for i, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet])},
            "merges": [],
        },
    }


def write_config(
    path: Path,
    base: Path | str,
    targets: Sequence[Path | str],
    select_topk: float,
    *,
    variant: str | None = None,
    dtype: str = "bfloat16",
) -> Path:
    """Write a FuseO1-shaped recipe, the base among the models; `variant` None: for mergekit too."""
    # A JSON string is a YAML string, whatever is in it.
    lines = ["models:", *(f"  - model: {json.dumps(str(model))}" for model in (base, *targets))]
    lines += ["merge_method: sce", f"base_model: {json.dumps(str(base))}"]
    lines += ["parameters:", f"  select_topk: {select_topk}"]
    if variant is not None:
        lines.append(f"  variant: {variant}")
    lines.append(f"dtype: {dtype}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _initial(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.bfloat16, device=generator.device)
    drawn = torch.randn(shape, generator=generator, device=generator.device)
    return drawn.mul_(BASE_STD).bfloat16()


def model_config(size: Size, end: int) -> dict[str, Any]:
    """Return what transformers' config.json of a Qwen2 model of this size holds."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "initializer_range": BASE_STD,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": end,
        "torch_dtype": "bfloat16",
    }


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--targets", type=int, default=3, metavar="N")
    parser.add_argument("--rms", type=float, default=1e-3, help="of the task vectors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--select-topk", type=float, default=1.0, help="in DIR/merge.yaml")
    options = parser.parse_args()
    made = make_siblings(
        options.directory, options.size, options.targets, options.rms, options.seed
    )
    config = write_config(
        options.directory / "merge.yaml", made.base, made.targets, options.select_topk
    )
    print(f"{made.base} and {len(made.targets)} fine-tunes of it; to merge them: {config}")


if __name__ == "__main__":
    main()
