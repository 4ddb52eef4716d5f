"""Chains of merges: the bytes of their stages run one after the other, and nothing of an earlier one on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fuseo1_kernels import MergeError, merge_checkpoints
from fuseo1_kernels.checkpoint.sink import Sink
from fuseo1_kernels.config.load import as_config
from fuseo1_kernels.engine.dry_run import dry_run
from fuseo1_kernels.engine.options import MergeOptions
from fuseo1_kernels.engine.tuning import Tuning
from fuseo1_kernels.engine.verify import verify_model
from support.engine_runs import MIB
from support.interrupted import partial_of
from support.method_cases import CASES, Case
from support.models import (
    Family,
    base_state,
    make_family,
    read_model,
    snapshot,
    tuned,
    weights,
    write_model,
)


@pytest.fixture
def family(mixed_dtypes: Family) -> Family:
    return mixed_dtypes


def on_top(family: Family, first: str, method: str = "sce", **keys: Any) -> dict[str, Any]:
    """Return a config that merges the result `first` with another model."""
    parameters = {"select_topk": 0.3} if method == "sce" else {"weight": 0.5}
    models = [{"model": first}, {"model": str(family.target(2))}]
    data = {"merge_method": method, "models": models, "parameters": parameters}
    return data | {"base_model": str(family.base)} | keys


def write_chain(file: Path, *documents: dict[str, Any]) -> Path:
    file.write_text("---\n".join(yaml.safe_dump(document) for document in documents))
    return file


def companions(model: Path) -> dict[str, bytes]:
    """Return the files that say nothing of how the model was merged."""
    of_merge = {"README.md", "mergekit_config.yml", "fuseo1_checksums.json"}
    return {path.name: path.read_bytes() for path in model.iterdir() if path.name not in of_merge}


@pytest.mark.parametrize("method", ["sce", pytest.param("linear", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_same_as_one_after_the_other(
    case: Case, method: str, family: Family, tmp_path: Path
) -> None:
    """Every method below another, in little memory, whatever the chunks; the files beside the weights, too."""
    case.configure(family)
    first = yaml.safe_load(family.config.read_text())
    merge_checkpoints(first, tmp_path / "first")
    merge_checkpoints(on_top(family, str(tmp_path / "first"), method), tmp_path / "expected")
    file = write_chain(tmp_path / "c.yaml", first | {"name": "it"}, on_top(family, "it", method))
    merge_checkpoints(file, tmp_path / "out", threads=1)
    assert weights(tmp_path / "out") == weights(tmp_path / "expected")
    assert companions(tmp_path / "out") == companions(tmp_path / "expected")
    planned = dry_run(as_config(file), None, MergeOptions(threads=2))
    assert planned.problems == ()
    merge_checkpoints(
        file, tmp_path / "again", threads=2, max_memory=64 * MIB, tuning=Tuning(chunk=1 << 9)
    )
    assert weights(tmp_path / "again") == weights(tmp_path / "expected")


def test_three_stages_resumed_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = make_family(tmp_path / "models")
    ties = {"weight": 0.7, "density": 0.4}
    stages = [
        on_top(family, str(family.target(1)), "ties", parameters=ties) | {"name": "a"},
        on_top(family, "a", "dare_linear") | {"name": "b"},
        on_top(family, "b", models=[{"model": "a"}, {"model": "b"}]),
    ]
    stages[1]["parameters"] = ties
    file = write_chain(tmp_path / "c.yaml", *stages)
    before = snapshot(tmp_path / "models")
    merge_checkpoints(stages, tmp_path / "expected")
    assert snapshot(tmp_path / "models") == before
    assert verify_model(tmp_path / "expected", recompute=None).problems == ()
    complete, calls = Sink.complete, []

    def stop(self: Sink, records: Any) -> None:
        complete(self, records)
        calls.append(records)
        raise MergeError("stopped here")

    monkeypatch.setattr(Sink, "complete", stop)
    with pytest.raises(MergeError, match="stopped here"):
        merge_checkpoints(file, tmp_path / "out", threads=1, tuning=Tuning(batch=1))
    monkeypatch.undo()
    assert partial_of(tmp_path / "out").exists() and calls
    result = merge_checkpoints(file, tmp_path / "out")
    assert result.resumed > 0
    assert weights(tmp_path / "out") == weights(tmp_path / "expected")


@pytest.mark.parametrize("kind", ["repeated", "tied"])
def test_masks_over_tensors_that_share_their_inputs(kind: str, tmp_path: Path) -> None:
    """A layer that slices repeat, and tensors that are one in a .bin, are several in an earlier merge's result."""
    base = base_state()
    if kind == "tied":
        base["lm_head.weight"] = base["model.embed_tokens.weight"]
    family = make_family(tmp_path / "models", [base, tuned(base, 1)], torch_bin=True)
    first = {"merge_method": "passthrough", "models": [{"model": str(family.base)}]}
    if kind == "repeated":
        source = {"model": str(family.base), "layer_range": [0, 2]}
        first = {"merge_method": "passthrough", "slices": [{"sources": [source]}] * 2}
    merge_checkpoints(first, tmp_path / "it")
    other = {name: t * 1.01 for name, t in read_model(tmp_path / "it").items()}
    config = json.loads((tmp_path / "it" / "config.json").read_text())
    write_model(tmp_path / "other", other, config=config)
    parameters = {"weight": 0.5, "density": 0.5}

    def last(base: str) -> dict[str, Any]:
        models = [{"model": str(tmp_path / "other")}]
        keys = {"merge_method": "dare_linear", "base_model": base, "models": models}
        return keys | {"parameters": parameters}

    merge_checkpoints(last(str(tmp_path / "it")), tmp_path / "expected")
    merge_checkpoints([first | {"name": "it"}, last("it")], tmp_path / "out")
    assert weights(tmp_path / "out") == weights(tmp_path / "expected")


def test_the_fingerprint_knows_the_earlier_merges(tmp_path: Path) -> None:
    family = make_family(tmp_path / "models")
    documents = [
        on_top(family, str(family.target(1)), "linear") | {"name": "a"},
        on_top(family, "a"),
    ]
    merge_checkpoints(write_chain(tmp_path / "c.yaml", *documents), tmp_path / "out")
    documents[0]["parameters"] = {"weight": 0.25}
    with pytest.raises(MergeError, match="exists"):
        merge_checkpoints(write_chain(tmp_path / "c.yaml", *documents), tmp_path / "out")


def test_errors_name_the_merge(tmp_path: Path) -> None:
    """A tensor that a model of an earlier merge lacks; an element of it that is not finite."""
    family = make_family(tmp_path / "models")
    first = on_top(family, str(family.target(1)), "task_arithmetic") | {"name": "a"}
    file = write_chain(tmp_path / "c.yaml", first, on_top(family, "a"))
    state = dict(family.states[1])
    name = next(iter(state))
    write_model(family.target(1), {n: t for n, t in state.items() if n != name})
    with pytest.raises(MergeError, match=f"merge a: tensor {name}: missing in model .*target1"):
        merge_checkpoints(file, tmp_path / "out")
    bad = state[name].clone()
    bad.view(-1)[3] = torch.nan
    write_model(family.target(1), state | {name: bad})
    with pytest.raises(MergeError, match=r"model .*target1, tensor .*: 1 NaN or infinite"):
        merge_checkpoints(file, tmp_path / "out")
    merge_checkpoints(file, tmp_path / "out", nonfinite="propagate")
    assert int(torch.isnan(read_model(tmp_path / "out")[name]).sum()) == 1
