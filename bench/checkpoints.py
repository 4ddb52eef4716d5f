"""Fine-tuned siblings of a Qwen2 model, as Hugging Face checkpoints that load and generate.

    python bench/checkpoints.py DIR --size tiny|small|0.5B [--targets 3] [--rms 1e-3] [--seed 0]

Writes DIR/base, DIR/target-1, ... (random weights, bf16, a small byte-level tokenizer) and
DIR/merge.yaml, a FuseO1-shaped recipe that merges them. Needs torch, safetensors, tokenizers and the package.
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
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fuseo1_kernels.bench.data import BASE_STD, fine_tune

#: The first ids are theirs, in this order.
SPECIAL_TOKENS = PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_MERGES = 200

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_SENTENCES = (
    "A merge of fine-tuned checkpoints reads every model and writes one.",
    "The survey learns which elements matter; the fuse adds what the models agree on to the base.",
    "Let us think step by step: first the question, then the reasoning, then the answer.",
    "The quick brown fox jumps over the lazy dog, and the dog merges with the fox.",
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
    tokenizer = train_tokenizer()
    generator = torch.Generator(device).manual_seed(seed)
    base = {name: _initial(name, shape, generator) for name, shape in size.shapes().items()}
    paths = siblings_in(directory, targets)
    write_model(paths.base, size, base, tokenizer)
    for path in paths.targets:
        tuned = {name: fine_tune(tensor, rms, generator) for name, tensor in base.items()}
        write_model(path, size, tuned, tokenizer)
    return paths


def siblings_in(directory: Path, targets: int) -> Siblings:
    """Return where `make_siblings` writes, or has written, its models."""
    names = [f"target-{i}" for i in range(1, targets + 1)]
    return Siblings(directory / "base", tuple(directory / name for name in names))


def write_model(
    path: Path, size: Size, tensors: dict[str, torch.Tensor], tokenizer: Tokenizer
) -> None:
    """Write one checkpoint: weights, configuration, tokenizer."""
    path.mkdir(parents=True, exist_ok=True)
    on_host = {name: tensor.cpu() for name, tensor in tensors.items()}
    save_file(on_host, path / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(path / "tokenizer.json"))
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


def train_tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer, trained on a few sentences, of at most 459 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIAL_TOKENS) + len(alphabet) + _MERGES,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return tokenizer


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
