"""Whole merges of NaN and infinity, and outputs that overflow: refused with the model's name, or passed on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fuseo1_kernels import MergeError
from support.engine_runs import MIB, merge, spoil
from support.fake_gpu import FakeDevice
from support.gpu.runs import on_gpus, refusals, same
from support.method_cases import BY_COLUMN, CASES, EMBED, Case, mixed_family
from support.models import Family, assert_same_state, make_family, read_model

METHODS = (
    *("linear", "passthrough", "task_arithmetic", "ties", "nearswap", "arcee_fusion", "della"),
    *("model_stock, by row", "nuslerp, by column"),
)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *(("sce", model) for model in (0, 1, 2)),
        *(
            pytest.param(name, 1, marks=() if i % 4 == 1 else pytest.mark.slow)
            for i, name in enumerate(METHODS)
        ),
    ],
)
def test_the_model_is_named_and_nothing_is_left(name: str, model: int, tmp_path: Path) -> None:
    """By a survey if there was none; a GPU says what the CPU says. Or they are NaN, and nothing else is."""
    family = mixed_family(tmp_path)
    case = CASES[name]
    case.configure(family)
    # Of the same column or row: what is merged by itself is counted.
    other = 3 + family.states[0][EMBED].shape[1] if case.by_column else 5
    spoil(family, model, EMBED, {3: torch.nan, other: torch.inf})
    on_cpu, on_gpu = refusals(family)
    assert (
        on_cpu == on_gpu
        and f"model {family.models[model]}, tensor {EMBED}: 2 NaN or infinite" in on_cpu
    )
    assert "--nonfinite propagate" in on_cpu
    merge(family, "cpu", nonfinite="propagate")
    found = read_model(family.home / "cpu")
    assert_same_state(found, case.expected(family))
    assert not found[EMBED].view(-1)[[3, other]].isfinite().any()
    on_gpus(family, FakeDevice(), nonfinite="propagate", resume=False)
    assert same(family)


def test_nonfinite_found_in_a_tensor_that_is_read_in_chunks(
    oversized: Family, tmp_path: Path
) -> None:
    base, left, *_ = oversized.states
    name = "model.embed_tokens.weight"
    bad = {n: t.clone() for n, t in left.items()}
    bad[name][-1, -1] = float("inf")
    family = make_family(tmp_path, [base, bad])
    with pytest.raises(MergeError, match=rf"target1, tensor {name}: 1 NaN or infinite"):
        merge(family, max_memory=8 * MIB)
    assert not family.out.parent.exists()
    merge(family, max_memory=8 * MIB, nonfinite="propagate")
    assert read_model(family.out)[name].isnan().sum() == 1


OVERFLOWS = {
    "sce": Case("sce", 2),
    "linear": Case("linear", 2, False, shared={"weight": 1}),
    "model_stock": Case("model_stock", 2),
    "columns": Case("nuslerp", 2, own={"weight": (-1.0, 2.0)}, shared=BY_COLUMN),
}


@pytest.mark.parametrize("name", OVERFLOWS)
def test_an_overflow_of_the_output(name: str, tmp_path: Path) -> None:
    states = [{"w": torch.full((301, 7), x)} for x in (6e4, 9e4, 12e4)]
    family = make_family(tmp_path, states)
    OVERFLOWS[name].configure(family)
    family.config.write_text(family.config.read_text() + "dtype: float16\n")
    on_cpu, on_gpu = refusals(family)
    assert on_cpu == on_gpu
    count = 301 if name == "columns" else 2107  # a column's number is told
    assert f"tensor w: {count} merged elements overflow float16" in on_cpu
    merge(family, nonfinite="propagate")
    assert read_model(family.out)["w"].isinf().all()


def test_a_difference_that_overflows(tmp_path: Path) -> None:
    states = [{"w": torch.full((300,), value)} for value in (-3e38, 3e38, -3e38)]
    family = make_family(tmp_path, states)
    Case("task_arithmetic", 2, shared={"weight": 1.0}).configure(family)
    with pytest.raises(MergeError, match=r"300 elements the difference to model .*base overflows"):
        merge(family, backend="reference")
