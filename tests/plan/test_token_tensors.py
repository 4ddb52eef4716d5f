"""Which tensors have a row per token, by name, shape and config."""

from __future__ import annotations

from typing import Any

import pytest

from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.plan.token_tensors import TokenTensors
from support.headers import Models, tensors

LAYER = {"model.layers.0.mlp.up_proj.weight": (9, 4), "model.norm.weight": (4,)}


@pytest.mark.parametrize(
    ("shapes", "config", "found"),
    [
        ({"model.embed_tokens.weight": (9, 4), "lm_head.weight": (9, 4)}, {}, 2),
        ({"embeddings.word_embeddings.weight": (9, 4), "cls.predictions.bias": (9,)}, {}, 2),
        ({"model.tok_embeddings.weight": (9, 4), "output.weight": (9, 4)}, {}, 2),
        ({"backbone.embeddings.weight": (9, 4)}, {"vocab_size": 9}, 1),
        ({"text.token_embedding.weight": (9, 4)}, {"text_config": {"vocab_size": 9}}, 1),
        ({"wte.weight": (9, 4), "wpe.weight": (9, 4), "head.bias": (4,)}, {}, 1),
        ({"embed_tokens.weight": (9, 4), "position_embeddings.weight": (9, 4)}, {}, 1),
        # A second vocabulary, and a head that lacks a row.
        ({"embed_tokens.weight": (9, 4), "audio.embed_tokens.weight": (12, 4)}, {"vocab_size": 9}, 1),
        ({"embed_tokens.weight": (9, 4), "lm_head.weight": (8, 4)}, {}, 1),
        ({"backbone.embeddings.weight": (9, 4)}, {}, 0),
    ],
)  # fmt: skip
def test_token_tensors(
    shapes: dict[str, tuple[int, ...]], config: dict[str, Any], found: int, models: Models
) -> None:
    models.add("m", tensors(shapes | LAYER), **config)
    with open_source(str(models.home / "m")) as source:
        tokens = TokenTensors(source)
    assert tokens.names == set(list(shapes)[:found])
    assert tokens.rows == (9 if found else None)
