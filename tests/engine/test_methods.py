"""Whole merges by every method: what the ops make of each tensor in memory, whatever the chunks, memory and threads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels import MergeError, merge_checkpoints
from fuseo1_kernels.backends import contract
from fuseo1_kernels.backends.contract import FuseParams
from fuseo1_kernels.backends.cpu import CpuBackend
from fuseo1_kernels.checkpoint.checksums import seal
from fuseo1_kernels.config.load import as_config
from fuseo1_kernels.engine.cpu import worker
from fuseo1_kernels.engine.dry_run import dry_run
from fuseo1_kernels.engine.options import MergeOptions
from fuseo1_kernels.engine.verify import verify_model
from fuseo1_kernels.methods import METHODS
from support.engine_runs import MIB, Told, merge
from support.interrupted import partial_of
from support.method_cases import CASES, Case
from support.models import Family, assert_same_state, make_family, read_model, weights
from support.processes import done, merge_json, run
from support.tuning import current, tune
from support.watching import watch


@pytest.fixture
def family(mixed_dtypes: Family) -> Family:
    return mixed_dtypes


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "merged"


@pytest.mark.parametrize("backend", ["cpu", pytest.param("reference", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_the_ops_make_of_it(
    case: Case, backend: str, family: Family, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker and one chunk; small chunks and several workers in little memory."""
    case.configure(family)
    expected = case.expected(family)
    progress = Told()
    result = merge_checkpoints(family.config, out, backend=backend, threads=1, progress=progress)
    assert progress.total == progress.advanced > 0
    assert_same_state(read_model(out), expected)
    assert result.notes == ()
    assert (case.method == "sce") == bool(result.energy_share)
    tune(monkeypatch, chunk=1 << 14)
    for threads, memory in ((1, 30 * MIB), (3, 100 * MIB)):
        options: dict[str, Any] = {"threads": threads, "max_memory": memory, "tuning": current()}
        again: dict[str, Any] = {"backend": backend, "overwrite": True, "resume": False}
        merge_checkpoints(family.config, out, **options, **again)
        assert_same_state(read_model(out), expected)


def test_every_method_is_merged_here() -> None:
    assert {case.method for case in CASES.values()} == METHODS.keys()


# --- slices --------------------------------------------------------------------------------------


def test_layers_stacked(tmp_path: Path) -> None:
    """Layers of two models, one of them twice and scaled: the bytes of the tensors that they are."""
    family = make_family(tmp_path)
    factors = {"o_proj": 0.0, "down_proj": 0.5}
    scale = [{"filter": part, "value": factor} for part, factor in factors.items()]
    parts = [(1, (0, 2), {}), (2, (0, 3), {"scale": scale}), (1, (1, 3), {})]
    sources = [
        {"model": str(family.target(model)), "layer_range": list(layers), "parameters": own}
        for model, layers, own in parts
    ]
    slices = [{"sources": [source]} for source in sources]
    family.configure(merge_method="passthrough", models=..., base_model=..., slices=slices)
    assert merge(family, backend="reference").notes == ()
    expected = {n: t for n, t in family.states[1].items() if ".layers." not in n}
    stacked = [(model, layer, own) for model, layers, own in parts for layer in range(*layers)]
    for index, (model, layer, own) in enumerate(stacked):
        for name, tensor in family.states[model].items():
            factor = next((f for part, f in factors.items() if own and part in name), 1)
            if f".layers.{layer}." in name:
                expected[name.replace(f".{layer}.", f".{index}.")] = tensor * factor
    found = read_model(family.out)
    # A product of 0 has the sign of the other factor; a sum has not.
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    config = json.loads((family.out / "config.json").read_text())
    assert config["num_hidden_layers"] == len(stacked) == 7
    card = (family.out / "README.md").read_text()
    assert "- base:" not in card and card.count("- merged:") == 2
    lent = family.target(1) / "tokenizer.json"
    assert (family.out / "tokenizer.json").read_bytes() == lent.read_bytes()


def test_a_base_that_lends_its_config(tmp_path: Path) -> None:
    family = make_family(tmp_path)
    source = {"model": str(family.target(1)), "layer_range": [0, 3]}
    family.configure(merge_method="passthrough", models=..., slices=[{"sources": [source]}])
    (family.base / "generation_config.json").write_text('{"of": "the base"}')
    merge(family, backend="reference")
    assert_same_state(read_model(family.out), family.states[1])
    assert "the base" in (family.out / "generation_config.json").read_text()


# --- seeds, resumption, verification -------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 1, pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("method", ["dare_ties", "della"])
def test_random_masks_are_kept_as_far_as_memory_goes(
    method: str, kept: int, family: Family, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(method, 3, own={"density": (0.3, 0.5, 0.6)}, shared={"weight": 0.6})
    case.configure(family)
    room = contract.kept_bytes
    monkeypatch.setattr(
        "fuseo1_kernels.engine.cpu.memory.kept_bytes", lambda *asked: room(*asked) * kept // 3
    )
    found: set[int] = set()

    def watched(cpu: CpuBackend, files: Any, params: FuseParams, *_: object) -> None:
        found.add(sum(k is not None for k in params.kept))

    watch(monkeypatch, CpuBackend, "fuse_files", watched)
    merge_checkpoints(family.config, out, backend="cpu", threads=1)
    assert_same_state(read_model(out), case.expected(family))
    assert kept in found


def test_seeds(family: Family, out: Path) -> None:
    case = CASES["dare_ties"]
    case.configure(family)
    said = [
        merge_json(family.config, out, "--backend", "reference", *argv, "--overwrite")["tensors"]
        and weights(out)
        for argv in ((), ("--random-seed", "7"), ("--random-seed", "0"))
    ]
    assert said[0] == said[2] != said[1]
    done(family.config, out, "--backend", "reference", "--random-seed", "-7", "--overwrite")
    assert_same_state(read_model(out), case.expected(family, -7))
    assert verify_model(out, recompute=None).problems == ()
    recorded = out / "fuseo1_checksums.json"
    content = json.loads(recorded.read_text())
    del content["checksum"]
    content["options"]["random_seed"] = 8
    recorded.write_bytes(seal(content))
    assert verify_model(out, recompute=None).problems


@pytest.mark.parametrize("seed", [1.5, "1", None, True])
def test_seeds_that_are_none(seed: Any, family: Family, out: Path) -> None:
    with pytest.raises(MergeError, match="random_seed: must be a whole number"):
        merge_checkpoints(family.config, out, random_seed=seed)
    with pytest.raises(MergeError, match="random_seed: must be a whole number"):
        dry_run(as_config(family.config), out, MergeOptions(random_seed=seed))


@pytest.mark.parametrize(
    "name", ["ties, rescaled", "karcher", "passthrough", "dare_linear", "nuslerp, by column"]
)
def test_verified_and_found_again(name: str, family: Family, out: Path) -> None:
    CASES[name].configure(family)
    merge_checkpoints(family.config, out, backend="reference")
    result = verify_model(out, recompute=None)
    assert result.problems == () and len(result.recomputed) == len(family.states[0])
    again = merge_checkpoints(family.config, out)
    assert "was there already" in again.notes[-1] and again.energy_share == {}
    planned = dry_run(as_config(family.config), out)
    assert planned.problems == () and "is there already" in planned.notes[-1]
    ran = run(family.config, out, "--backend", "reference", "--overwrite")
    assert ran.code == 0 and "energy" not in ran.out


@pytest.mark.parametrize("name", ["ties", "nuslerp, by column"])
def test_gone_on_with(
    name: str, family: Family, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seed that changes nothing is not in the way; one that does, or another parameter, is."""
    write, written = worker.CpuWorker._write, set[str]()

    def fail(self: Any, job: Any, *rest: Any, **at: int) -> None:
        if len(written) > 5:
            raise MergeError("no more")
        write(self, job, *rest, **at)
        written.add(job.name)

    def cut_short(name: str, **options: Any) -> None:
        CASES[name].configure(family)
        written.clear()
        with monkeypatch.context() as patch:
            patch.setattr(worker.CpuWorker, "_write", fail)
            tune(patch, batch=1)
            options |= {"backend": "reference", "threads": 1, "tuning": current()}
            with pytest.raises(MergeError, match="no more"):
                merge_checkpoints(family.config, out, **options)
        assert partial_of(out).exists()

    cut_short(name)
    result = merge_checkpoints(family.config, out, backend="reference", random_seed=3)
    assert result.resumed >= 5
    assert_same_state(read_model(out), CASES[name].expected(family))
    out = out.with_name("other")
    cut_short("dare_linear", random_seed=1)
    with pytest.raises(MergeError, match="--no-resume"):
        merge_checkpoints(family.config, out, backend="reference")
    merge_checkpoints(family.config, out, backend="reference", random_seed=1)
    assert_same_state(read_model(out), CASES["dare_linear"].expected(family, 1))


# --- kept surveys --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["ties, rescaled", "dare_linear", "karcher", "linear", "arcee_fusion"]
)
def test_surveys_of_every_kind_are_kept(
    name: str, family: Family, out: Path, tmp_path: Path
) -> None:
    case = CASES[name]
    options: dict[str, Any] = {"backend": "reference", "survey_cache": tmp_path / "cache"}
    case.configure(family)
    first = merge_checkpoints(family.config, out, **options)
    again = merge_checkpoints(family.config, out, overwrite=True, **options)
    size = sum(t.nbytes for state in case.states(family) for t in state.values())
    surveys = {"ties, rescaled": 2, "arcee_fusion": 2, "linear": 0}.get(name, 1)
    assert (first.bytes_read, again.bytes_read) == ((1 + surveys) * size, size)
    assert_same_state(read_model(out), case.expected(family))


def test_survey_topk_is_for_sce(family: Family, out: Path, tmp_path: Path) -> None:
    CASES["ties"].configure(family)
    with pytest.raises(MergeError, match="survey_topk: ties has no select_topk; leave it out"):
        merge_checkpoints(family.config, out, survey_topk=(0.5,), survey_cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# --- memory --------------------------------------------------------------------------------------


def test_memory_for_many_cuts(family: Family, out: Path) -> None:
    """A survey of magnitudes needs for every cut what another survey needs."""
    said = {}
    for name in ("linear", "ties", "arcee_fusion", "breadcrumbs_ties"):
        CASES[name].configure(family)
        with pytest.raises(MergeError, match="the least is") as caught:
            merge_checkpoints(family.config, out, max_memory=3 * MIB)
        said[name] = int(str(caught.value).split()[-2])
        options = MergeOptions(max_memory=64 * MIB)
        assert dry_run(as_config(family.config), None, options).peak_memory <= 64 * MIB
    assert said["linear"] < said["ties"] < said["breadcrumbs_ties"]
    assert said["linear"] < said["arcee_fusion"]
