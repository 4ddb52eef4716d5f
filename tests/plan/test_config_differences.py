"""Notes on models whose configs differ in what the weights depend on."""

from __future__ import annotations

from typing import Any

import pytest

from fuseo1_kernels.plan.config_differences import differing_settings
from support.headers import Models, tensors

YARN = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
YARN_5 = {"factor": 4.0, "original_max_position_embeddings": 32768, "rope_type": "yarn"}


@pytest.mark.parametrize(
    ("first", "other", "names"),
    [
        ({"rope_theta": 1e6}, {"rope_theta": 10000.0}, ["rope_theta"]),
        ({"rope_theta": 1e6}, {"rope_parameters": {"rope_theta": 1000000}}, []),
        ({"rope_theta": 1e6}, {"rope_parameters": {"rope_theta": 5.0}}, ["rope_theta"]),
        ({"rope_theta": 1e6}, {}, []),  # no config.json
        ({"rope_theta": 1e6}, {"vocab_size": 9}, ["rope_theta"]),
        ({"rope_theta": 1e4}, {"vocab_size": 9}, []),  # most classes' default
        ({"hidden_act": "relu"}, {"vocab_size": 9}, []),
        ({"text_config": {"rope_theta": 1.0}}, {"text_config": {"rope_theta": 2.0}}, ["rope_theta"]),
        ({"rope_theta": 1.0}, {"thinker_config": {"text_config": {"rope_theta": 2.0}}}, ["rope_theta"]),
        ({}, {"rope_scaling": YARN}, ["rope_scaling"]),
        ({"rope_scaling": None}, {"rope_scaling": YARN}, ["rope_scaling"]),
        ({"rope_scaling": YARN}, {"rope_parameters": {"rope_theta": 1e4, **YARN_5}}, []),
        ({}, {"rope_parameters": {"rope_theta": 1.0, "rope_type": "default"}}, []),
        ({"rope_scaling": YARN}, {"rope_scaling": YARN | {"factor": 2.0}}, ["rope_scaling"]),
        ({"max_position_embeddings": 9}, {"max_position_embeddings": 8}, ["max_position_embeddings"]),
        ({"n_positions": 9}, {"n_positions": 8}, ["max_position_embeddings"]),
        ({"rms_norm_eps": 1e-6}, {"rms_norm_eps": 1e-5}, ["rms_norm_eps"]),
        ({"rms_norm_eps": 1e-6}, {"rms_norm_eps": 0.000001}, []),
        ({"hidden_act": "silu"}, {"hidden_act": "gelu"}, ["hidden_act"]),
        ({"tie_word_embeddings": False}, {"tie_word_embeddings": True}, ["tie_word_embeddings"]),
        ({"architectures": ["A"]}, {"architectures": ["B"]}, ["architectures"]),
        ({"model_type": "a", "x": 1}, {"model_type": "b", "x": 2}, ["model_type"]),
        ({"rope_scaling": [1], "text_config": 3, "rope_parameters": 0}, {"rope_parameters": []}, []),
    ],
)  # fmt: skip
def test_settings(first: dict[str, Any], other: dict[str, Any], names: list[str]) -> None:
    assert [name for name, _, _ in differing_settings(first, other)] == names
    assert [name for name, _, _ in differing_settings(other, first)] == names


def test_note(models: Models) -> None:
    models.add("base", tensors({"w": (4,)}), rope_theta=1e6, hidden_act="silu")
    models.add("left", tensors({"w": (4,)}), rope_theta=1e4, hidden_act="\x1b" * 999)
    models.add("right", tensors({"w": (4,)}), rope_theta=1e6)
    plan = models.plan("base left right")
    assert plan.problems == ()
    [note] = plan.notes
    assert note.startswith(
        "model left: its config.json differs: rope_theta 10000.0 (the base's: 1000000.0), hidden_act '"
    )
    assert note.isprintable() and len(note) < 400
