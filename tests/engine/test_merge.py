"""Whole merges: the same bits as the in-memory function, whatever the models, parameters and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels import MergeError
from support.engine_runs import merge
from support.models import (
    LAYERS,
    VOCAB,
    Family,
    State,
    assert_same_state,
    base_state,
    make_family,
    merged,
    model_config,
    read_model,
    tokenizer_json,
    tuned,
    weights,
    write_model,
)
from support.tensors import BF16, DTYPES, FP16, FP32

# --- the same bits as merge_tensors ------------------------------------------------------


@pytest.mark.parametrize("variant", ["fuseo1", "mergekit"])
@pytest.mark.parametrize("select_topk", [1.0, 0.5, 0.1, 0.0])
def test_equals_the_in_memory_function(select_topk: float, variant: str, family: Family) -> None:
    parameters = {"select_topk": select_topk, "variant": variant}
    family.configure(parameters=parameters)
    merge(family)
    assert_same_state(read_model(family.out), family.expected(**parameters))


@pytest.mark.parametrize("select_topk", [1.0, 0.3])
def test_equals_the_reference_backend(select_topk: float, family: Family) -> None:
    family.configure(parameters={"select_topk": select_topk})
    assert merge(family, "cpu", backend="cpu").backend.startswith("cpu: ")
    assert merge(family, "reference", backend="reference").backend.startswith("reference: ")
    assert weights(family.home / "cpu") == weights(family.home / "reference")


def test_auto_is_the_cpu_backend(family: Family) -> None:
    assert merge(family).backend.startswith("cpu: ")


@pytest.mark.parametrize("targets", [1, 2, 5])
def test_any_number_of_targets(targets: int, tmp_path: Path) -> None:
    base = base_state(layers=1)
    states = [base, *(tuned(base, i + 1) for i in range(targets))]
    family = make_family(tmp_path, states)
    family.configure(parameters={"select_topk": 0.5})
    result = merge(family)
    assert_same_state(read_model(family.out), family.expected(select_topk=0.5))
    assert list(result.energy_share) == [str(family.target(i + 1)) for i in range(targets)]
    # One model has no variance, so nothing is selected.
    assert sum(result.energy_share.values()) == pytest.approx(1.0 if targets > 1 else 0.0)


def test_identical_models_give_the_base(tmp_path: Path) -> None:
    base = base_state(layers=1)
    family = make_family(tmp_path, [base, base, base])
    result = merge(family)
    assert_same_state(read_model(family.out), base)
    assert set(result.energy_share.values()) == {0.0}


def test_mixed_dtypes_across_models(tmp_path: Path) -> None:
    base = base_state(FP32, layers=1)
    states = [{n: t.to(BF16) for n, t in base.items()}, tuned(base, 1, FP16), tuned(base, 2, FP32)]
    family = make_family(tmp_path, states)
    family.configure(parameters={"select_topk": 0.5})
    merge(family, "promoted")
    assert_same_state(read_model(family.home / "promoted"), family.expected(select_topk=0.5))
    assert {t.dtype for t in read_model(family.home / "promoted").values()} == {FP32}


@pytest.mark.parametrize("key", ["dtype", "out_dtype"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_dtype(dtype: torch.dtype, key: str, family: Family) -> None:
    name = str(dtype).removeprefix("torch.")
    family.configure(**{key: name})
    merge(family)
    expected = {n: merged(family.states, n, out_dtype=dtype) for n in family.states[0]}
    assert_same_state(read_model(family.out), expected)
    config = json.loads((family.out / "config.json").read_text())
    assert config == model_config(dtype)


def test_out_dtype_wins_over_dtype(family: Family) -> None:
    family.configure(dtype="float16", out_dtype="float32")
    merge(family)
    expected = {n: merged(family.states, n, out_dtype=FP32) for n in family.states[0]}
    assert_same_state(read_model(family.out), expected)


@pytest.mark.parametrize(
    "state",
    [
        {"empty": torch.empty(0, 5), "scalar": torch.tensor(2.0), "one": torch.ones(1)},
        {"w": torch.ones(3, 0), "model.layers.0.w": torch.ones(2, 2, 2, 2)},
        {"nothing": torch.empty(0)},
    ],
)
def test_odd_shapes(state: State, tmp_path: Path) -> None:
    family = make_family(tmp_path, [state, tuned(state, 1), tuned(state, 2)])
    family.configure(parameters={"select_topk": 0.5})
    merge(family)
    assert_same_state(read_model(family.out), family.expected(select_topk=0.5))


# --- parameters per tensor ---------------------------------------------------------------


def test_gradients_and_filters(family: Family) -> None:
    filters = [
        {"filter": "mlp", "value": [0.1, 0.9]},
        {"filter": "self_attn", "value": 0.25},
        {"filter": "norm", "value": 0.0},
        {"value": [0.75, 1.0]},
    ]
    family.configure(parameters={"select_topk": filters, "variant": [{"value": "mergekit"}]})
    merge(family)
    assert LAYERS == 3
    mlp = {0: 0.1, 1: 0.5 * 0.1 + 0.5 * 0.9, 2: 0.9}

    def topk(name: str) -> float:
        if "mlp" in name:
            return mlp[int(name.split(".")[2])]
        return 0.25 if "self_attn" in name else 0.0 if "norm" in name else 0.75

    expected = {
        n: merged(family.states, n, parameters={"select_topk": topk(n), "variant": "mergekit"})
        for n in family.states[0]
    }
    assert_same_state(read_model(family.out), expected)


def test_slices(family: Family) -> None:
    base, left, right = str(family.base), str(family.target(1)), str(family.target(2))

    def part(topk: object, *sources: tuple[str, int, int]) -> dict[str, Any]:
        listed = [{"model": m, "layer_range": [a, b]} for m, a, b in sources]
        return {"sources": listed, "parameters": {"select_topk": topk}}

    family.configure(
        models=...,
        slices=[
            part([0.2, 0.8], (base, 0, 2), (left, 1, 3)),
            part([{"filter": "mlp", "value": 0.1}], (base, 1, 3), (right, 1, 3), (left, 0, 2)),
        ],
        parameters={"select_topk": 0.6},
    )
    result = merge(family)
    b, t1, t2 = family.states
    expected = {}

    def put(name: str, topk: float, *parts: tuple[State, str]) -> None:
        states = [{name: state[part]} for state, part in parts]
        expected[name] = merged(states, name, parameters={"select_topk": topk})

    for name in b:
        if ".layers." not in name:
            first = "embed" in name
            put(
                name, 0.2 if first else 0.6, (b, name), *([] if first else [(t2, name)]), (t1, name)
            )
    for name in b:
        if ".layers.0." in name:
            after = name.split(".layers.0.")[1]

            def layer(i: int, after: str = after) -> str:
                return f"model.layers.{i}.{after}"

            for i, topk in ((0, 0.2), (1, 0.8)):
                put(layer(i), topk, (b, layer(i)), (t1, layer(i + 1)))
            for i in (0, 1):
                topk = 0.1 if "mlp" in name else 0.6
                put(layer(i + 2), topk, (b, layer(i + 1)), (t2, layer(i + 1)), (t1, layer(i)))
    assert_same_state(read_model(family.out), expected)
    config = json.loads((family.out / "config.json").read_text())
    assert config == model_config(num_hidden_layers=4)
    assert set(result.energy_share) == {left, right}


# --- kinds of files ----------------------------------------------------------------------


@pytest.mark.parametrize("torch_bin", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_input_files(shards: int, torch_bin: bool, family: Family, tmp_path: Path) -> None:
    merge(family)
    other = make_family(tmp_path / "other", family.states, shards=shards, torch_bin=torch_bin)
    merge(other)
    assert_same_state(read_model(other.out), read_model(family.out))
    if shards == 1 and not torch_bin:
        assert weights(other.out) == weights(family.out)


def test_models_in_different_formats(family: Family, tmp_path: Path) -> None:
    base, left, right = family.states
    other = Family(tmp_path / "other", family.states, tmp_path / "other.yaml")
    write_model(other.base, base, shards=2)
    write_model(other.target(1), left, torch_bin=True)
    write_model(other.target(2), right)
    other.configure()
    merge(other)
    merge(family)
    assert_same_state(read_model(other.out), read_model(family.out))


def test_output_shards(family: Family) -> None:
    merge(family)
    size = 20_000
    result = merge(family, "sharded", shard_size=size)
    sharded = family.home / "sharded"
    assert len(result.shards) > 3
    assert result.shards == tuple(sorted(p.name for p in sharded.glob("*.safetensors")))
    assert_same_state(read_model(sharded), read_model(family.out))
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    total = sum(t.nbytes for t in family.states[0].values())
    assert index["metadata"] == {"total_size": total}
    assert set(index["weight_map"].values()) == set(result.shards)
    for name in result.shards:
        assert (sharded / name).stat().st_size < size + 5_000  # the header is not counted
    assert not (family.out / "model.safetensors.index.json").exists()


# --- embeddings of different sizes -------------------------------------------------------


@pytest.mark.parametrize("rows", [(VOCAB, VOCAB - 6, VOCAB - 2), (VOCAB - 6, VOCAB, VOCAB)])
def test_crop_embeddings(rows: tuple[int, ...], tmp_path: Path) -> None:
    whole = base_state(layers=1)
    states = [whole, tuned(whole, 1), tuned(whole, 2)]
    embeddings = ("model.embed_tokens.weight", "lm_head.weight")
    for state, count in zip(states, rows, strict=True):
        state |= {n: state[n][:count].clone() for n in embeddings}
    family = make_family(tmp_path, states)
    files = {"tokenizer.json": tokenizer_json(vocab=min(rows))}  # all have fewer tokens than rows
    for number, count in enumerate(rows):
        path = family.target(number) if number else family.base
        config = model_config(vocab_size=count)
        write_model(path, states[number], config=config, tokenizer=files)
    family.configure(parameters={"select_topk": 0.5})

    with pytest.raises(MergeError, match="--crop-embeddings") as caught:
        merge(family)
    assert all(f"tensor {n}: vocabulary sizes differ" in str(caught.value) for n in embeddings)
    merge(family, crop_embeddings=True)
    least = min(rows)
    sliced = [{n: t[:least] if n in embeddings else t for n, t in s.items()} for s in states]
    expected = {n: merged(sliced, n, parameters={"select_topk": 0.5}) for n in whole}
    assert_same_state(read_model(family.out), expected)
    config = json.loads((family.out / "config.json").read_text())
    assert config == model_config(vocab_size=least)


def test_crop_embeddings_of_equal_sizes_changes_nothing(family: Family) -> None:
    merge(family)
    merge(family, "cropped", crop_embeddings=True)
    for name in ("model.safetensors", "config.json"):
        assert (family.out / name).read_bytes() == (family.home / "cropped" / name).read_bytes()
