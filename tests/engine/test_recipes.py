"""The five recipes run by name, offline, on small Qwen2 checkpoints in a hub cache of their names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.checkpoint_files import cached_model, tree
from support.models import (
    LAYERS,
    VOCAB,
    State,
    assert_same_state,
    base_state,
    merged,
    model_config,
    read_model,
    tokenizer_files,
    tokenizer_json,
    tuned,
    write_model,
)
from support.processes import spawn
from support.recipes import PUBLISHED, R1

BASES = sorted({base for base, _ in PUBLISHED.values()})  # of a Coder the second
TARGETS = sorted({target for _, targets in PUBLISHED.values() for target in targets})

# DeepSeek's own, between full-width bars, stand under ids that Qwen gives to other tokens.
USER, ASSISTANT, BOS, EOS = (
    f"<\uff5c{word}\uff5c>"
    for word in ("User", "Assistant", "begin\u2581of\u2581sentence", "end\u2581of\u2581sentence")
)
R1_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}" + USER + "{{ m.content }}"
    "{% else %}" + ASSISTANT + "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "<think>\n{% endif %}"
)
R1_TOKENIZER: dict[str, Any] = {
    "add_bos_token": True,
    "bos_token": {"__type": "AddedToken", "content": BOS, "special": True},
    "eos_token": {"__type": "AddedToken", "content": EOS, "special": True},
    "model_max_length": 16384,
    "tokenizer_class": "LlamaTokenizerFast",
    "unk_token": None,
    "chat_template": R1_TEMPLATE,
}
R1_SETTINGS = {
    "bos_token_id": VOCAB - 3,
    "eos_token_id": VOCAB - 2,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
}


class Hub:
    """A hub cache of all models, and their weights by name."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.states: dict[str, State] = {}
        for number, name in enumerate(BASES):
            base = {n: t + number / 64 for n, t in base_state().items()}
            self.add(name, base, tokenizer_files())
        for seed, name in enumerate(TARGETS, start=1):
            base = self.states[BASES["Coder" in name]]
            tokenizer = tokenizer_files()
            if name == R1:
                special = tokenizer_json(special=(BOS, EOS, "<think>"))
                tokenizer = {
                    "tokenizer.json": special,
                    "tokenizer_config.json": json.dumps(R1_TOKENIZER).encode(),
                }
            self.add(name, tuned(base, seed), tokenizer)

    def add(self, name: str, state: State, tokenizer: dict[str, bytes]) -> None:
        plain = self.home / "plain" / name
        config = model_config(bos_token_id=1) if name in BASES else model_config(use_cache=False)
        settings: dict[str, Any] = {"max_new_tokens": 9, "eos_token_id": VOCAB - 3}
        if name == R1:
            config |= {"eos_token_id": VOCAB - 2}
            settings = R1_SETTINGS
        write_model(plain, state, tokenizer=tokenizer, shards=3, config=config)
        (plain / "generation_config.json").write_text(json.dumps(settings))
        files = {p.name: p.read_bytes() for p in plain.iterdir()}
        cached_model(self.home / "hub", name, files)
        self.states[name] = state

    def run(self, *argv: object, cwd: Path) -> Any:
        env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.home)}
        return spawn("-m", "fuseo1_kernels.merge", *argv, env=env, cwd=cwd)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        os.environ.pop(name, None)  # they would win over HF_HOME
    return Hub(tmp_path_factory.mktemp("hf"))


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_recipe(recipe: str, hub: Hub, tmp_path: Path) -> None:
    cache = tree(hub.home / "hub")
    ran = hub.run(recipe, "merged", "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    out = tmp_path / "merged"
    base, targets = PUBLISHED[recipe]
    assert list(said["energy_share"]) == targets
    [note] = said["notes"]
    assert note.startswith(f"tokenizers differ: id {VOCAB - 3} is token '{BOS}' in {R1} and")

    # The embeddings' rows too are merged as they stand, whatever tokens the ids mean.
    states = [hub.states[base], *(hub.states[target] for target in targets)]
    expected = {n: merged(states, n, parameters={"select_topk": 1.0}) for n in states[0]}
    assert_same_state(read_model(out), expected)

    # The base's, but for where a text ends: that goes with the tokenizer, and so do the settings of generation.
    config = model_config(bos_token_id=1, eos_token_id=VOCAB - 2)
    assert json.loads((out / "config.json").read_text()) == config
    assert json.loads((out / "generation_config.json").read_text()) == R1_SETTINGS
    r1 = hub.home / "plain" / R1
    assert (out / "tokenizer.json").read_bytes() == (r1 / "tokenizer.json").read_bytes()
    tokenizer = json.loads((out / "tokenizer_config.json").read_text())
    assert tokenizer == R1_TOKENIZER | {"add_bos_token": False}
    assert tokenizer["chat_template"] == R1_TEMPLATE
    card = (out / "README.md").read_text()
    for name in (base, *targets):
        assert f'- "{name}"\n' in card.split("---\n")[1]
    assert tree(hub.home / "hub") == cache
    assert [p.name for p in tmp_path.iterdir()] == ["merged"]

    # It is prompted with DeepSeek's template.
    loaded = AutoTokenizer.from_pretrained(out)
    messages = [{"role": "user", "content": "Hi"}]
    prompt = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == f"{BOS}{USER}Hi{ASSISTANT}<think>\n"
    ids = loaded(prompt).input_ids
    assert ids.count(loaded.bos_token_id) == 1  # the template's own: none is added
    assert loaded("Hi").input_ids[0] != loaded.bos_token_id
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.num_hidden_layers == LAYERS
    # It stops where the tokenizer ends a text, and samples as the model's card says.
    settings = model.generation_config
    assert settings.eos_token_id == loaded.eos_token_id == model.config.eos_token_id
    assert (settings.temperature, settings.top_p, settings.do_sample) == (0.6, 0.95, True)


def test_what_is_missing_in_the_cache_is_named(hub: Hub, tmp_path: Path) -> None:
    name = "NovaSky-AI/Sky-T1-32B-Flash"
    [blobs] = (hub.home / "hub").glob("models--NovaSky-AI--Sky-T1-32B-Flash/snapshots/*")
    shard = blobs / "model-00002-of-00003.safetensors"
    link = os.readlink(shard)
    shard.unlink()
    try:
        recipe = "FuseO1-DeepSeekR1-QwQ-SkyT1-Flash-32B-Preview"
        for options in ([], ["--dry-run"]):
            ran = hub.run(recipe, "merged", *options, cwd=tmp_path)
            assert ran.code == 1
            assert name in ran.err and shard.name in ran.err and "Traceback" not in ran.err
            assert not any(tmp_path.iterdir())
    finally:
        shard.symlink_to(link)
