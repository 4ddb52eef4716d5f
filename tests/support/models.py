"""Tiny Qwen2 checkpoints with a tokenizer, made without network."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from fuseo1_kernels import merge_tensors
from support.checkpoint_files import tree, write_json
from support.tensors import BF16, FP16, FP32, assert_same_bits

State = dict[str, torch.Tensor]

HIDDEN, FFN, HEADS, KV_HEADS, VOCAB, LAYERS = 32, 64, 4, 2, 272, 3
NAMES = {BF16: "bfloat16", FP16: "float16", FP32: "float32"}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# --- weights -----------------------------------------------------------------------------


def shapes(
    layers: int = LAYERS,
    vocab: int = VOCAB,
    hidden: int = HIDDEN,
    ffn: int = FFN,
    kv: int = HIDDEN // HEADS * KV_HEADS,
) -> dict[str, list[int]]:
    """Names and shapes of a Qwen2 model's tensors, in the order in which transformers has them."""
    found = {"model.embed_tokens.weight": [vocab, hidden]}
    for i in range(layers):
        layer = f"model.layers.{i}"
        found |= {
            f"{layer}.self_attn.q_proj.weight": [hidden, hidden],
            f"{layer}.self_attn.q_proj.bias": [hidden],
            f"{layer}.self_attn.k_proj.weight": [kv, hidden],
            f"{layer}.self_attn.k_proj.bias": [kv],
            f"{layer}.self_attn.v_proj.weight": [kv, hidden],
            f"{layer}.self_attn.v_proj.bias": [kv],
            f"{layer}.self_attn.o_proj.weight": [hidden, hidden],
            f"{layer}.mlp.gate_proj.weight": [ffn, hidden],
            f"{layer}.mlp.up_proj.weight": [ffn, hidden],
            f"{layer}.mlp.down_proj.weight": [hidden, ffn],
            f"{layer}.input_layernorm.weight": [hidden],
            f"{layer}.post_attention_layernorm.weight": [hidden],
        }
    return found | {"model.norm.weight": [hidden], "lm_head.weight": [vocab, hidden]}


def base_state(**size: Any) -> State:
    """Weights as before any fine-tune."""
    g = torch.Generator().manual_seed(7)
    return {
        name: (torch.randn(shape, generator=g) * 0.05 + ("norm" in name)).to(BF16)
        for name, shape in shapes(**size).items()
    }


def tuned(base: Mapping[str, torch.Tensor], seed: int, dtype: torch.dtype | None = None) -> State:
    """A light fine-tune of `base`."""
    g = torch.Generator().manual_seed(100 + seed)
    return {
        name: (t.float() + torch.randn(t.shape, generator=g) * 1e-3 * seed).to(dtype or t.dtype)
        for name, t in base.items()
    }


def states_of(shapes: Mapping[str, Sequence[int]], *dtypes: torch.dtype) -> list[State]:
    """A base of tensors of these shapes and light fine-tunes of it, in these dtypes."""
    g = torch.Generator().manual_seed(1)
    base = {name: torch.randn(list(shape), generator=g) * 0.05 for name, shape in shapes.items()}
    first = {name: t.to(dtypes[0]) for name, t in base.items()}
    return [first, *(tuned(base, i, dtype) for i, dtype in enumerate(dtypes[1:], 1))]


def merged(states: Sequence[Mapping[str, torch.Tensor]], name: str, **keywords: Any) -> Any:
    """Return the tensor that the in-memory function merges; the base's state comes first."""
    return merge_tensors([s[name] for s in states], "sce", base_index=0, **keywords)


# --- files -------------------------------------------------------------------------------


@cache
def tokenizer_json(vocab: int = VOCAB, special: Sequence[str] = SPECIAL) -> bytes:
    """A byte-level BPE tokenizer whose ids fill [0, `vocab`), special tokens last."""
    ids = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    letters = [letter for letter in ids if letter.isalpha() and letter.isascii()]
    for first in letters:
        for second in letters:
            if len(ids) < vocab - len(special):
                ids[first + second] = len(ids)
                merges.append((first, second))
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer.to_str(pretty=True).encode()


def tokenizer_files(template: str = TEMPLATE, **changes: Any) -> dict[str, bytes]:
    """The tokenizer's files as the hub has them."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[0],
        "pad_token": SPECIAL[0],
        "model_max_length": 64,
        "chat_template": template,
    }
    return {
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": json.dumps(config | changes).encode(),
    }


def model_config(dtype: torch.dtype = BF16, **changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "eos_token_id": VOCAB - 3,
        "torch_dtype": NAMES[dtype],
    } | changes


def write_model(
    path: Path,
    state: Mapping[str, torch.Tensor],
    *,
    config: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, bytes] | None = None,
    shards: int = 1,
    torch_bin: bool = False,
) -> Path:
    """Write a checkpoint as transformers would: weights in one file or in `shards`, small files."""
    path.mkdir(parents=True, exist_ok=True)
    stem, ending = ("pytorch_model", "bin") if torch_bin else ("model", "safetensors")

    def save(part: State, file: Path) -> None:
        if torch_bin:
            torch.save(part, file)
        else:
            save_file(part, file, metadata={"format": "pt"})

    names = list(state)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        file = f"{stem}.{ending}" if shards == 1 else f"{stem}-{i + 1:05d}-of-{shards:05d}.{ending}"
        save({name: state[name] for name in part}, path / file)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        write_json(path / f"{stem}.{ending}.index.json", index)
    dtype = next(iter(state.values())).dtype
    write_json(path / "config.json", config or model_config(dtype if dtype in NAMES else BF16))
    for name, content in (tokenizer_files() if tokenizer is None else tokenizer).items():
        (path / name).write_bytes(content)
    return path


def read_model(path: Path) -> State:
    """All tensors of a safetensors checkpoint, by the library that everyone reads it with."""
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return load_file(path / "model.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    state: State = {}
    for file in sorted(set(weight_map.values())):
        held = load_file(path / file)
        assert all(weight_map[name] == file for name in held)
        state |= held
    assert state.keys() == weight_map.keys()
    return state


def assert_same_state(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same_bits(actual[name], tensor, name)


@dataclass
class Family:
    """A base and its fine-tunes on disk, and a config that merges them; `home` holds all of it."""

    home: Path
    states: list[State]  # the base's first
    config: Path

    @property
    def base(self) -> Path:
        return self.home / "base"

    @property
    def out(self) -> Path:
        """Return the path to which tests write the result; neither it nor its parent exists."""
        return self.home / "results" / "merged"

    def target(self, number: int) -> Path:
        return self.home / f"target{number}"

    @property
    def models(self) -> list[Path]:
        """Return the base and the fine-tunes."""
        return [self.base, *(self.target(number) for number in range(1, len(self.states)))]

    def configure(self, **changes: Any) -> Path:
        """Rewrite the config with top-level keys changed, or left out where the change is `...`."""
        data: dict[str, Any] = {
            "models": [{"model": str(path)} for path in self.models],
            "merge_method": "sce",
            "base_model": str(self.base),
        } | changes
        data = {key: value for key, value in data.items() if value is not ...}
        self.config.write_text(yaml.safe_dump(data, sort_keys=False))
        return self.config

    def expected(self, **parameters: Any) -> State:
        return {n: merged(self.states, n, parameters=parameters) for n in self.states[0]}


def make_family(home: Path, states: Sequence[State] | None = None, **writing: Any) -> Family:
    """Write `states` (default: a base and two fine-tunes) and a config below `home`."""
    if states is None:
        base = base_state()
        states = [base, tuned(base, 1), tuned(base, 2)]
    family = Family(home, list(states), home / "merge.yaml")
    for path, state in zip(family.models, states, strict=True):
        write_model(path, state, **writing)
    family.configure()
    return family


def weights(path: Path) -> dict[str, bytes]:
    """The bytes of the weight files and their index."""
    return {f.name: f.read_bytes() for f in path.iterdir() if f.name.startswith("model")}


def snapshot(home: Path) -> dict[str, Any]:
    """Everything below `home`: bytes, and the links themselves."""
    links = {str(p.relative_to(home)): os.readlink(p) for p in home.rglob("*") if p.is_symlink()}
    return {"links": links, "tree": tree(home)}
