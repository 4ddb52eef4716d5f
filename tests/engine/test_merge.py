"""Whole merges: the bits are those of the in-memory function; what lies beside them, and what is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels import MergeError
from support.engine_runs import MIB, Told, merge, spoil
from support.models import (
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
from support.processes import merge_json, spawn
from support.tensors import DTYPES

# --- the same bits as merge_tensors ------------------------------------------------------


@pytest.mark.parametrize("variant", ["fuseo1", "mergekit"])
@pytest.mark.parametrize("select_topk", [1.0, 0.5, 0.1, 0.0])
def test_equals_the_in_memory_function(select_topk: float, variant: str, family: Family) -> None:
    parameters = {"select_topk": select_topk, "variant": variant}
    family.configure(parameters=parameters)
    assert merge(family).backend.startswith("cpu: ")
    assert_same_state(read_model(family.out), family.expected(**parameters))


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_output_dtype(dtype: torch.dtype, family: Family) -> None:
    family.configure(dtype=str(dtype).removeprefix("torch."))
    merge(family)
    expected = {n: merged(family.states, n, out_dtype=dtype) for n in family.states[0]}
    assert_same_state(read_model(family.out), expected)
    config = json.loads((family.out / "config.json").read_text())
    assert config == model_config(dtype)


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


# --- kinds of files ----------------------------------------------------------------------


@pytest.mark.parametrize("formats", [(0, 0, 0), (0, 3, 0), (-1, -1, -1), (-3, -3, -3), (2, -1, 0)])
def test_input_files(formats: tuple[int, ...], family: Family, tmp_path: Path) -> None:
    """One file or so many shards, of torch's own where they are below 0. There are no rows to crop."""
    merge(family)
    other = make_family(tmp_path / "other", family.states)
    for path, state, shards in zip(other.models, family.states, formats, strict=True):
        (path / "model.safetensors").unlink()
        write_model(path, state, shards=abs(shards) or 1, torch_bin=shards < 0)
    merge(other, crop_embeddings=True)
    assert_same_state(read_model(other.out), read_model(family.out))
    if formats[0] == 0:  # in the order of the base's file
        assert weights(other.out) == weights(family.out)
    assert (other.out / "config.json").read_bytes() == (family.out / "config.json").read_bytes()


# --- embeddings of different sizes -------------------------------------------------------


@pytest.mark.parametrize("rows", [(VOCAB, VOCAB - 6, VOCAB - 2), (VOCAB - 6, VOCAB, VOCAB)])
def test_crop_embeddings(rows: tuple[int, ...], family: Family) -> None:
    embeddings = ("model.embed_tokens.weight", "lm_head.weight")
    for path, state, count in zip(family.models, family.states, rows, strict=True):
        state |= {n: state[n][:count].clone() for n in embeddings}
        files = {
            "tokenizer.json": tokenizer_json(vocab=min(rows))
        }  # all have fewer tokens than rows
        sizes: dict[str, Any] = {"vocab_size": count, "nested": [{"vocab_size": count}]}
        write_model(path, state, config=model_config(**sizes), tokenizer=files)
    family.configure(parameters={"select_topk": 0.5})

    with pytest.raises(MergeError, match="--crop-embeddings") as caught:
        merge(family)
    assert all(f"tensor {n}: vocabulary sizes differ" in str(caught.value) for n in embeddings)
    merge(family, crop_embeddings=True)
    least = min(rows)
    sliced = [{n: t[:least] if n in embeddings else t for n, t in s.items()} for s in family.states]
    expected = {n: merged(sliced, n, parameters={"select_topk": 0.5}) for n in sliced[0]}
    assert_same_state(read_model(family.out), expected)
    config = json.loads((family.out / "config.json").read_text())
    assert config == model_config(vocab_size=least, nested=[{"vocab_size": least}])


# --- what is reported --------------------------------------------------------------------


@pytest.mark.parametrize("max_memory", [512, 8])
def test_progress_ends_where_it_said(max_memory: int, oversized: Family) -> None:
    oversized.configure(parameters={"select_topk": 0.1})
    progress = Told()
    merge(oversized, f"told{max_memory}", max_memory=max_memory * MIB, progress=progress, threads=1)
    elements = sum(t.numel() for t in oversized.states[0].values())
    assert progress.total == progress.advanced == elements * 2 * 5
    assert progress.closed == 1


def test_progress_is_closed_when_the_merge_fails(family: Family) -> None:
    spoil(family, 1, "model.norm.weight", {0: float("nan")})
    progress = Told()
    with pytest.raises(MergeError):
        merge(family, progress=progress)
    assert progress.closed == 1


def test_result(family: Family) -> None:
    extra = family.states[1] | {"left_over": torch.ones(3)}
    write_model(family.target(1), extra)
    result = merge(family, shard_size=30_000)
    assert result.out_dir == str(family.out)
    assert result.tensors == len(family.states[0])
    assert result.parameters == sum(t.numel() for t in family.states[0].values())
    assert result.bytes_written == 2 * result.parameters
    assert result.bytes_read == 2 * 3 * result.bytes_written  # by survey and fuse
    assert result.seconds > 0
    assert set(result.shards) == {p.name for p in family.out.glob("*.safetensors")}
    # Deltas of rms 1e-3 and 2e-3: a fifth and four fifths of the energy.
    assert list(result.energy_share.values()) == pytest.approx([0.2, 0.8], abs=0.02)
    assert len(result.notes) == 1 and "left_over" in result.notes[0]
    assert "left_over" not in read_model(family.out)
    assert merge_json(family.config, family.home / "other").keys() == result.as_dict().keys()


def test_bad_options(family: Family) -> None:
    for options, message in (
        ({"nonfinite": "ignore"}, "nonfinite: must be error or propagate"),
        ({"backend": "cuda"}, "cuda"),
        ({"backend": "nope"}, "nope"),
        ({"shard_size": 0}, "shard_size: 0: a size must be positive"),
        ({"max_memory": "2GiB"}, "max_memory: '2GiB' is not a number of bytes"),
        ({"max_memory": 1}, "--max-memory"),
    ):
        with pytest.raises(MergeError, match=message):
            merge(family, **options)
        assert not family.out.parent.exists()


def test_an_instruction_set_that_is_not_there(family: Family) -> None:
    ran = spawn(
        *("-m", "fuseo1_kernels.merge", family.config, family.out), env={"FUSEO1_ISA": "sse9"}
    )
    assert ran.code == 1
    assert "sse9" in ran.err and "baseline" in ran.err and "Traceback" not in ran.err
