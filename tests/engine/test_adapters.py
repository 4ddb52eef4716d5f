"""model+adapter: every kind of LoRA adapter, as PEFT merges it in float64."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file

from fuseo1_kernels import merge_checkpoints
from fuseo1_kernels.config.load import as_config
from fuseo1_kernels.engine.dry_run import dry_run
from fuseo1_kernels.engine.verify import verify_model
from support.adapters import merged_by_peft, save_adapter, save_model
from support.models import assert_same_state, read_model
from support.tensors import BF16, FP32, assert_same_bits
from support.tuning import current, tune

pytestmark = pytest.mark.peer

LLAMA, GPT2 = hf.LlamaForCausalLM, hf.GPT2LMHeadModel
SIZES = {"vocab_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONV = ["c_attn", "c_proj", "c_fc"]


def llama(**changes: Any) -> Any:
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_key_value_heads": 2}
    return LLAMA(hf.LlamaConfig(**SIZES, **sizes, **{"tie_word_embeddings": False, **changes}))


def gpt2() -> Any:
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    return GPT2(hf.GPT2Config(vocab_size=96, n_embd=48, n_layer=2, n_head=4, **tokens))


MODELS = {
    "llama": llama,
    "tied": lambda: llama(tie_word_embeddings=True),
    "biased": lambda: llama(attention_bias=True),
    "gpt2": gpt2,
}
#: By name: the model, and LoraConfig's arguments.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": ALL}),
    "bin": ("llama", {"target_modules": ALL, "safe": False}),
    "bf16": ("llama", {"target_modules": ALL, "dtype": BF16}),
    "patterns": (
        "llama",
        {
            "target_modules": ALL,
            "rank_pattern": {"q_proj": 5, "^model.layers.0.mlp.up_proj": 3},
            "alpha_pattern": {r"layers.1\.self_attn.(v|k)_proj": 5, "proj": 7},
        },
    ),
    "rslora": ("llama", {"target_modules": ALL, "use_rslora": True}),
    "dora": ("llama", {"target_modules": [*ALL, "embed_tokens"], "use_dora": True}),
    "embeddings": ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
    "saved": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "norm"]}),
    "biases": ("biased", {"target_modules": ["q_proj", "o_proj"], "bias": "all"}),
    "lora_bias": ("biased", {"target_modules": ["q_proj", "o_proj"], "lora_bias": True}),
    "tied": ("tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied_head": ("tied", {"target_modules": ["lm_head"]}),
    "tied_dora": ("tied", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "conv1d": ("gpt2", {"target_modules": [*CONV, "wte"], "fan_in_fan_out": True}),
    "conv1d_dora": ("gpt2", {"target_modules": CONV, "use_dora": True}),
}
#: In the fast run, too.
FAST = {"plain", "patterns", "dora", "saved", "tied", "conv1d"}


def some_slow(kinds: Iterable[str]) -> list[Any]:
    return [pytest.param(k, marks=[] if k in FAST else pytest.mark.slow) for k in kinds]


def make(home: Path, kind: str) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """Return the model, the adapter and what PEFT makes of both."""
    name, config = KINDS[kind]
    model = save_model(MODELS[name](), home / name)
    of = GPT2 if name == "gpt2" else LLAMA
    adapter = save_adapter(model, home / f"{kind}-adapter", of, r=4, **{"lora_alpha": 16, **config})
    return model, adapter, merged_by_peft(model, adapter, of)


def run(config: dict[str, Any], out: Path, **options: Any) -> dict[str, torch.Tensor]:
    merge_checkpoints(config, out, tuning=current(), **options)
    return read_model(out)


@pytest.mark.parametrize("kind", some_slow(KINDS))
def test_every_kind(kind: str, tmp_path: Path) -> None:
    model, adapter, expected = make(tmp_path, kind)
    config = {"models": [{"model": f"{model}+{adapter}"}], "merge_method": "passthrough"}
    state = run({**config, "dtype": "float32"}, tmp_path / "fp32")
    before = read_model(model)
    assert any(not torch.equal(t, before[name].float()) for name, t in state.items())
    assert expected.keys() - state.keys() <= {"lm_head.weight"}
    if "lm_head.weight" not in state:
        (embeddings,) = expected.keys() & {"model.embed_tokens.weight", "transformer.wte.weight"}
        assert torch.equal(expected["lm_head.weight"], expected[embeddings])
    for name, tensor in state.items():
        assert_same_bits(tensor, expected[name].float(), name)
    # Without a dtype the output has that of the model, whatever the adapter's is.
    for name, tensor in run(config, tmp_path / "kept").items():
        assert_same_bits(tensor, expected[name].float().to(BF16), name)


@pytest.mark.parametrize("kind", some_slow(["bf16", "dora", "conv1d_dora"]))
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("sce", {"select_topk": 0.3}),
        ("ties", {"density": 0.4, "weight": 0.7}),
        ("linear", {"weight": 1.0}),
    ],
)
def test_merges_as_with_the_merged_model(
    kind: str,
    method: str,
    parameters: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same bytes as with a model in fp32 that PEFT has made, by every backend, in pieces too; and resumed."""
    model, adapter, expected = make(tmp_path, kind)
    folded = tmp_path / "folded"
    folded.mkdir()
    (folded / "config.json").write_bytes((model / "config.json").read_bytes())
    names = read_model(model)
    state = {name: expected[name].float().contiguous().clone() for name in names}
    save_file(state, folded / "model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((model / "config.json").read_bytes())
    save_file({n: t * 1.01 for n, t in names.items()}, other / "model.safetensors")

    def config(first: str) -> dict[str, Any]:
        base = {} if method == "linear" else {"base_model": str(model)}
        models = [{"model": first}, {"model": str(other)}]
        return {
            **base,
            "models": models,
            "merge_method": method,
            "parameters": parameters,
            "dtype": "bfloat16",
        }

    wanted = run(config(str(folded)), tmp_path / "wanted")
    ours = config(f"{model}+{adapter}")
    assert_same_state(run(ours, tmp_path / "merged"), wanted)
    assert_same_state(run(ours, tmp_path / "reference", backend="reference"), wanted)
    tune(monkeypatch, chunk=1 << 10)
    monkeypatch.setattr("fuseo1_kernels.plan.folded._PIECE", 1000)
    assert_same_state(run(ours, tmp_path / "pieces", threads=2), wanted)
    result = verify_model(tmp_path / "merged", recompute=None)
    assert not result.problems and len(result.recomputed) == len(wanted)


def test_what_stands_beside(tmp_path: Path) -> None:
    """Dry run, card and fingerprint know the adapter; the model itself may be the base of its own adapter."""
    model, adapter, _ = make(tmp_path, "plain")
    name = f"{model}+{adapter}"
    mapping = {"model": {"path": str(model)}, "lora": {"path": str(adapter)}}
    config = {
        "base_model": str(model),
        "models": [{"model": mapping, "parameters": {"weight": 1.0}}],
        "merge_method": "task_arithmetic",
        "dtype": "bfloat16",
    }
    assert as_config(config).target_names() == [name]
    planned = dry_run(as_config(config), tmp_path / "out")
    assert not planned.problems
    first = run(config, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"- merged: `{model.name}+{adapter.name}`" in card
    assert merge_checkpoints(config, tmp_path / "out").resumed == len(first)
    file = adapter / "adapter_model.safetensors"
    os.utime(file, ns=(0, 0))
    with pytest.raises(Exception, match="out"):
        merge_checkpoints(config, tmp_path / "out")


def test_a_directory_with_a_plus_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adapter, expected = make(tmp_path, "plain")
    monkeypatch.chdir(tmp_path)
    model.rename("a+b")
    adapter.rename("c+d")
    for name, dtype in (("a+b", BF16), ("a+b+c+d", FP32)):
        config = {"models": [{"model": name}], "merge_method": "passthrough", "dtype": "float32"}
        state = run(config, tmp_path / f"out{len(name)}")
        whole = read_model(tmp_path / "a+b") if dtype == BF16 else expected
        for tensor in state:
            assert_same_bits(state[tensor], whole[tensor].float(), tensor)
