"""Fixtures of the tests of merges on simulated GPUs."""

from __future__ import annotations

import pytest

from support.engine_runs import merge
from support.method_cases import CASES
from support.models import Family, make_family, states_of
from support.tensors import BF16, FP16, FP32
from support.tuning import tune

#: Tensors of many chunks, of one, tiny and empty ones; no size is a multiple of anything.
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (1023, 517),
    "model.layers.0.mlp.up_proj.weight": (301, 333),
    "model.layers.0.mlp.down_proj.weight": (333, 301),
    "model.layers.1.mlp.up_proj.weight": (301, 333),
    "lm_head.weight": (1023, 517),
    "scalar": (),
    "empty": (0, 3),
    **{f"model.layers.{i}.input_layernorm.weight": (97 + i,) for i in range(30)},
}


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Models in bf16, fp16 and fp32, 5 MB in bf16 each, and their merge by SCE on the CPU in `cpu`."""
    family = make_family(tmp_path_factory.mktemp("mixed"), states_of(SHAPES, BF16, FP16, FP32))
    family.configure(parameters={"select_topk": 0.3, "variant": "mergekit"}, dtype="bfloat16")
    merge(family, "cpu")
    return family


@pytest.fixture
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that slots are used over and over, and units are many."""
    tune(monkeypatch, slot=64 << 10, batch=64 << 10)


@pytest.fixture
def on_cpu(request: pytest.FixtureRequest, mixed: Family, mixed_dtypes: Family) -> Family:
    """A merge by the case that is asked for, done by the CPU in `cpu`; by SCE it is `mixed`."""
    if request.param == "sce":
        return mixed
    CASES[request.param].configure(mixed_dtypes)
    merge(mixed_dtypes, "cpu", overwrite=True, resume=False)
    return mixed_dtypes
