"""Tied tensors draw one random mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels.methods.task_arithmetic import TaskArithmetic
from fuseo1_kernels.plan.plan import Plan
from support.headers import Models, layered, tensors
from support.models import write_model

DARE = {
    "merge_method": "dare_ties",
    "parameters": {"weight": 1.0, "density": 0.5},
}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def same_mask(plan: Plan, one: str, other: str) -> bool:
    assert not plan.problems
    rules = {job.name: job.rule for job in plan.jobs}
    keys = [rule.keys for n in (one, other) if isinstance(rule := rules[n], TaskArithmetic)]
    every = [rule.keys for rule in rules.values() if isinstance(rule, TaskArithmetic)]
    assert len(set(every)) >= len(every) - 1
    return keys[0] == keys[1]


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"tie_word_embeddings": True}, True),
        ({"text_config": {"tie_word_embeddings": True}}, True),
        ({"model_type": "gpt2"}, True),  # transformers' default
        ({"tie_word_embeddings": False}, False),
        ({}, False),
    ],
)
def test_embeddings_that_a_config_ties(config: dict[str, Any], tied: bool, models: Models) -> None:
    for name in ("base", "left"):
        models.add(name, tensors(layered(1)), **config)
    assert same_mask(models.plan("base left", **DARE), EMBED, HEAD) == tied


def test_an_output_layer_of_another_shape_is_not_tied(models: Models) -> None:
    shapes = layered(1) | {HEAD: (10, 5)}
    for name in ("base", "left"):
        models.add(name, tensors(shapes), tie_word_embeddings=True)
    assert not same_mask(models.plan("base left", **DARE), EMBED, HEAD)


def test_tensors_that_torch_stored_once(models: Models, tmp_path: Path) -> None:
    shared, alike = torch.ones(3, 2, dtype=torch.bfloat16), torch.ones(3, 2, dtype=torch.bfloat16)
    state = {"a.weight": shared, "b.weight": alike, "c.weight": shared}
    for name in ("base", "left"):
        write_model(tmp_path / name, state, torch_bin=True, tokenizer={})
    plan = models.plan("base left", **DARE)
    assert same_mask(plan, "a.weight", "c.weight")
    assert not same_mask(plan, "a.weight", "b.weight")


def test_a_layer_that_slices_repeat_draws_masks_of_its_own(models: Models) -> None:
    for name in ("base", "left"):
        models.add(name, tensors(layered(2)), num_hidden_layers=2)
    once = [{"model": name, "layer_range": [0, 1]} for name in ("base", "left")]
    plan = models.plan("base", slices=[{"sources": once}] * 2, **DARE)
    copies = [f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1)]
    assert not same_mask(plan, copies[0], copies[1])
