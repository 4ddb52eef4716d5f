"""Models whose rows lie in another order, with the tokenizer to it: the same merge, bit by bit, in every way."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fuseo1_kernels import verify_model
from support.engine_runs import MIB, merge
from support.fake_gpu import FakeDevice
from support.gpu.runs import SCHEDULES, on_gpus
from support.method_cases import CASES
from support.models import (
    VOCAB,
    Family,
    base_state,
    make_family,
    tokenizer_files,
    tuned,
    weights,
    write_model,
)
from support.tuning import tune

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def shuffle(family: Family, number: int) -> None:
    """Write a model with its tokens in another order, and rows behind them."""
    order = random.Random(number).sample(range(VOCAB), VOCAB)  # by new id, the old one
    new = {old: index for index, old in enumerate(order)}
    files = tokenizer_files()
    data = json.loads(files["tokenizer.json"])
    data["model"]["vocab"] = {token: new[i] for token, i in data["model"]["vocab"].items()}
    data["added_tokens"] = [t | {"id": new[t["id"]]} for t in data["added_tokens"]]
    state = dict(family.states[number])
    for name in EMBEDDINGS:
        rows = state[name][torch.tensor(order)]
        state[name] = torch.cat(
            [rows, torch.full((16, rows.shape[1]), torch.nan, dtype=rows.dtype)]
        )
    write_model(
        family.models[number],
        state,
        tokenizer=files | {"tokenizer.json": json.dumps(data).encode()},
    )


@pytest.mark.parametrize(
    "name",
    [
        *("sce", "ties", "della", "arcee_fusion", "nuslerp, by column"),
        pytest.param("nuslerp, by row", marks=pytest.mark.slow),
    ],
)
def test_the_same_bytes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_state(layers=1)
    family = make_family(tmp_path, [base, *(tuned(base, seed) for seed in (1, 2, 3))])
    CASES[name].configure(family)
    merge(family, "expected")
    expected = weights(family.home / "expected")
    for number in range(1, len(family.models)):
        shuffle(family, number)
    family.configure(**yaml.safe_load(family.config.read_text()), tokenizer_source="base")
    ways: list[dict[str, Any]] = [{"threads": 1}, {"threads": 3, "max_memory": 24 * MIB}]
    for way, options in enumerate([*ways, {"backend": "reference"}]):
        tune(monkeypatch, chunk=1 << 12 if way else 1 << 20)
        merge(family, f"out{way}", **options)
        assert weights(family.home / f"out{way}") == expected, options
    on_gpus(family, FakeDevice(**SCHEDULES["lazy"]))
    assert weights(family.home / "gpu") == expected
    assert verify_model(family.home / "out0", recompute=None).problems == ()
