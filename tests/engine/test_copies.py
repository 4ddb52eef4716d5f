"""Tensors that are not merged like others: integers are copied, tied tensors stay equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels import MergeError, verify_model
from support.engine_runs import MIB, merge
from support.fake_gpu import FakeDevice
from support.gpu.runs import on_gpus
from support.models import (
    Family,
    State,
    base_state,
    make_family,
    merged,
    model_config,
    read_model,
    tuned,
    write_model,
)
from support.tensors import assert_same_bits
from support.tuning import tune

INTEGERS: State = {
    "embeddings.position_ids": torch.arange(700).expand(1, -1).contiguous(),
    "mask": torch.tensor([True, False, True]),
    "none": torch.empty(0, dtype=torch.int32),
    "steps": torch.tensor(7, dtype=torch.uint8),
}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def buffered(tmp_path: Path) -> Family:
    """Models with integers beside their weights."""
    base = base_state()
    return make_family(tmp_path, [s | INTEGERS for s in (base, tuned(base, 1), tuned(base, 2))])


def change(family: Family, name: str) -> None:
    """Change the last element of an integer tensor in the second target."""
    changed = family.states[2][name].clone()
    changed.view(-1)[-1] = not changed.view(-1)[-1]
    write_model(family.target(2), family.states[2] | {name: changed})


def check(family: Family, out: Path) -> None:
    state = read_model(out)
    for name in family.states[0]:
        if name in INTEGERS:
            assert torch.equal(state[name], INTEGERS[name]), name
            assert state[name].dtype == INTEGERS[name].dtype
        else:
            assert_same_bits(state[name], merged(family.states, name), name)


@pytest.mark.parametrize("chunk", [256, 1 << 20])
def test_integers_that_all_models_have_are_copied(
    chunk: int, buffered: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(monkeypatch, chunk=chunk)
    result = merge(buffered)
    assert result.notes == ()
    check(buffered, buffered.out)
    assert verify_model(buffered.out, recompute=None).problems == ()


@pytest.mark.parametrize("name", ["embeddings.position_ids", "mask", "steps"])
def test_integers_that_differ_are_refused(name: str, buffered: Family) -> None:
    change(buffered, name)
    with pytest.raises(MergeError, match=rf"tensor {name}: its \w+ elements differ .*target2"):
        merge(buffered)
    assert not buffered.out.exists()


def test_integers_on_a_gpu(buffered: Family) -> None:
    result = on_gpus(buffered, FakeDevice(), max_gpu_memory=14 * MIB)
    check(buffered, buffered.home / "gpu")
    assert result.notes == ("4 tensors merged on the CPU: integers are copied",)


@pytest.mark.parametrize("torch_bin", [False, True])
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("dare_ties", {"weight": 1.0, "density": 0.5}),
        ("dare_linear", {"weight": [0.3, 0.7], "density": 0.3}),
        ("della", {"weight": 1.0, "density": 0.5}),
    ],
)
def test_tied_embeddings_stay_equal(
    method: str, parameters: dict[str, Any], torch_bin: bool, tmp_path: Path
) -> None:
    states = [base_state()]
    states += [tuned(states[0], seed) for seed in (1, 2)]
    for state in states:
        # torch stores it once, under two names; a safetensors file has it twice.
        state[HEAD] = state[EMBED] if torch_bin else state[EMBED].clone()
    config = model_config(tie_word_embeddings=not torch_bin)
    family = make_family(tmp_path, states, config=config, torch_bin=torch_bin)
    family.configure(merge_method=method, parameters=parameters)
    merge(family)
    state = read_model(family.out)
    assert_same_bits(state[HEAD], state[EMBED])
    assert not torch.equal(state[EMBED], states[0][EMBED])
