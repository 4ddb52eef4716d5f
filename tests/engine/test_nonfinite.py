"""Whole merges of NaN and infinity, and outputs that overflow: refused, or passed on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fuseo1_kernels import MergeError
from support.engine_runs import MIB, merge, spoil
from support.models import Family, assert_same_state, make_family, merged, read_model


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("model", [0, 2])
def test_nonfinite_is_an_error_that_counts(model: int, backend: str, family: Family) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    spoil(family, model, name, {0: float("nan"), 70: float("inf"), 2000: float("-inf")})
    path = family.target(model) if model else family.base
    with pytest.raises(MergeError) as caught:
        merge(family, backend=backend)
    text = str(caught.value)
    assert str(path) in text and name in text and "3 NaN or infinite" in text
    assert "--nonfinite propagate" in text
    assert not family.out.parent.exists()


@pytest.mark.parametrize("variant", ["fuseo1", "mergekit"])
@pytest.mark.parametrize("select_topk", [1.0, 0.4])
def test_nonfinite_propagates(select_topk: float, variant: str, family: Family) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    spoil(family, 0, name, {5: float("nan")})
    spoil(family, 2, name, {0: float("nan"), 70: float("inf")})
    parameters = {"select_topk": select_topk, "variant": variant}
    family.configure(parameters=parameters)
    merge(family, nonfinite="propagate")
    found = read_model(family.out)
    expected = {
        n: merged(family.states, n, parameters=parameters, nonfinite="propagate")
        for n in family.states[0]
    }
    assert_same_state(found, expected)
    assert found[name].isnan().nonzero().tolist() == [[0, 0], [0, 5], [2, 6]]


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


def test_overflow_of_the_output_dtype(tmp_path: Path) -> None:
    base = {"w": torch.full((300,), 60000.0)}
    target = {"w": base["w"].clone()}
    target["w"][7] = 70000.0
    family = make_family(tmp_path, [base, target])
    family.configure(out_dtype="float16")
    with pytest.raises(MergeError, match=r"tensor w: 1 merged elements overflow float16"):
        merge(family)
    assert not family.out.parent.exists()
    merge(family, nonfinite="propagate")
    assert read_model(family.out)["w"].isinf().nonzero().tolist() == [[7]]
