"""The merged model is one that transformers loads and that generates; merged modules are too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from fuseo1_kernels import merge_state_dicts, merge_tensors
from support.models import (
    SPECIAL,
    VOCAB,
    Family,
    State,
    assert_same_state,
    make_family,
    merged,
    model_config,
    read_model,
    tuned,
    write_model,
)
from support.processes import done, merge_json
from support.tensors import BF16, FP32, assert_same_bits

pytestmark = pytest.mark.peer


def load(path: Path, **options: Any) -> Any:
    """The model, every weight of which came from the files."""
    model, said = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not said[kind], (kind, said[kind])
    return model.eval()


def generate(path: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = load(path)
    assert len(tokenizer) <= model.config.vocab_size
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Merge me"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    prompt = inputs["input_ids"].shape[1]
    assert tokenizer.decode(inputs["input_ids"][0]).startswith(f"{SPECIAL[1]}user\nMerge me")
    ids = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert ids.shape == (1, prompt + 8)
    assert ids.max() < model.config.vocab_size
    return str(tokenizer.decode(ids[0, prompt:]))


def weights_of(model: Any) -> State:
    return {name: t.detach() for name, t in model.state_dict().items()}


@pytest.mark.parametrize("options", [(), ("--shard-size", "30KB")])
def test_loads_and_generates(options: tuple[str, ...], family: Family) -> None:
    family.configure(parameters={"select_topk": 0.5})
    done(family.config, family.out, *options)
    assert (family.out / "model.safetensors.index.json").exists() == bool(options)
    model = load(family.out)
    assert model.dtype is BF16
    assert_same_state(weights_of(model), family.expected(select_topk=0.5))
    generate(family.out)


def test_output_dtype_and_literal_chat_template(family: Family) -> None:
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    family.configure(out_dtype="float32", chat_template=template)
    done(family.config, family.out)
    model = load(family.out)
    assert model.dtype is FP32
    expected = {n: merged(family.states, n, out_dtype=FP32) for n in family.states[0]}
    assert_same_state(weights_of(model), expected)
    tokenizer = AutoTokenizer.from_pretrained(family.out)
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "[Hi]"


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("sce", {"select_topk": 0.5}),
        ("ties", {"weight": 1.0, "density": 0.5}),
        ("dare_ties", {"weight": 1.0, "density": 0.5}),
        ("karcher", {}),
    ],
)
def test_modules_with_tied_weights(method: str, parameters: dict[str, Any]) -> None:
    """A module's state has a tied tensor under both of its names: they come out the same, and are tied when loaded."""
    config = Qwen2Config(**model_config(tie_word_embeddings=True, num_hidden_layers=2))
    modules = []
    for seed in range(3):
        torch.manual_seed(seed)
        modules.append(Qwen2ForCausalLM(config).to(BF16).eval())
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    assert modules[0].lm_head.weight is modules[0].model.embed_tokens.weight
    base = None if method == "karcher" else 0
    state = merge_state_dicts(modules, method, base=base, parameters=parameters)
    assert list(state) == list(modules[0].state_dict())
    for name, tensor in state.items():
        inputs = [weights_of(m)[name] for m in modules]
        drawn_as = embed if name == head else name
        expected = merge_tensors(
            inputs,
            method,
            base_index=base,
            parameters=parameters,
            backend="reference",
            name=drawn_as,
        )
        assert_same_bits(tensor, expected, name)
    assert_same_bits(state[embed], state[head])
    modules[1].load_state_dict(state)
    assert modules[1].lm_head.weight is modules[1].model.embed_tokens.weight
    assert_same_state(weights_of(modules[1]), state)
    assert modules[1](torch.arange(VOCAB).view(1, -1)[:, :9]).logits.isfinite().all()


def test_models_that_transformers_saved(tmp_path: Path) -> None:
    """Real checkpoints: random initialisation, its names and config, sharded by transformers."""
    torch.manual_seed(3)
    config = Qwen2Config(**model_config(tie_word_embeddings=True, num_hidden_layers=2))
    base = Qwen2ForCausalLM(config).to(BF16)
    states = [{n: t.clone() for n, t in base.state_dict().items() if n != "lm_head.weight"}]
    states += [tuned(states[0], seed) for seed in (1, 2)]
    family = make_family(tmp_path, states)
    for path, state in zip(family.models, states, strict=True):
        (path / "model.safetensors").unlink()
        base.load_state_dict(state, strict=False)
        base.save_pretrained(path, max_shard_size="20KB")
        assert (path / "model.safetensors.index.json").exists()
    done(family.config, family.out)
    assert_same_state(read_model(family.out), family.expected())
    model = load(family.out)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert json.loads((family.out / "config.json").read_text())["dtype"] == "bfloat16"
    generate(family.out)


def test_cropped_embeddings(family: Family) -> None:
    wider = model_config(vocab_size=VOCAB + 16)
    for path, state in zip(family.models[::2], family.states[::2], strict=True):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            state[name] = torch.cat([state[name], state[name][:16]])
        write_model(path, state, config=wider)
    done(family.config, family.out, "--crop-embeddings")
    model = load(family.out)
    assert model.config.vocab_size == VOCAB
    assert model.get_input_embeddings().weight.shape[0] == VOCAB
    generate(family.out)


def test_slices(family: Family) -> None:
    sources = [
        [{"model": str(path), "layer_range": [first, end]} for path in (family.base, target)]
        for target, first, end in ((family.target(1), 0, 2), (family.target(2), 1, 3))
    ]
    family.configure(models=..., slices=[{"sources": s} for s in sources])
    said = merge_json(family.config, family.out)
    assert list(said["energy_share"]) == [str(family.target(1)), str(family.target(2))]
    model = load(family.out)
    assert model.config.num_hidden_layers == 4 == len(model.model.layers)
    name = "mlp.up_proj.weight"
    expected = merged([family.states[0], family.states[2]], f"model.layers.2.{name}")
    assert_same_bits(model.model.layers[3].mlp.up_proj.weight.detach(), expected)
    generate(family.out)
