"""bench/gpu.sh keeps stages within their time and sets figures beside goals. These tests need no GPU."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu
import gpu_case
import gpu_merge_report
import gpu_report
import gpu_stages
import pytest
import report
import torch
from gpu_merge_report import WholeMerges
from gpu_report import Figure, Findings, Stage, goals, markdown, publish
from gpu_stages import Job

from support.emulated import load_emulated

MACHINE = {"gpu": "NVIDIA H200", "driver": "580.1", "commit": "abc", "date": "2026-11-22"}


def figure(**changes: Any) -> Figure:
    known: dict[str, Any] = {
        **{"call": "merge", "backend": "cuda", "targets": 3, "dtypes": "bfloat16", "rms": 1e-3},
        **{"select_topk": 1.0, "variant": "fuseo1", "ms": 1.0, "gb_per_s": 4000.0, "passes": 1},
        **{"copy_gb_per_s": 4200.0, "of_copy": 0.9, "host_us": 50.0, "samples": [1e-3]},
    }
    return Figure(**(known | changes))


def verdicts(found: Findings) -> dict[str, bool | None]:
    return {goal.what: goal.met for goal in goals(found)}


@pytest.mark.parametrize(("reached", "met"), [(0.88, True), (0.8799, False)])
def test_the_goal_of_the_copy(reached: float, met: bool) -> None:
    found = Findings([5120, 27648], [figure(of_copy=reached)])
    case = "5120x27648, bf16, 3 targets, select_topk 1, fuseo1"
    assert verdicts(found)[f"cuda, of the copy: {case}"] is met
    assert [v for v in verdicts(found).values() if v is not None] == [met]


def test_goals_of_ratios_and_of_what_must_stay_small() -> None:
    figures = [
        figure(select_topk=0.1, ms=1.0),
        figure(select_topk=0.1, ms=1.2, backend="triton"),
        figure(select_topk=0.1, ms=2.0, call="merge_tensors"),
        figure(select_topk=0.1, ms=41.0, call="mergekit", backend="mergekit", variant="mergekit"),
    ]
    found = Findings([8, 8], figures, extra_memory={"cuda": 0.031}, small_ratio=2.9)
    case = "8x8, bf16, 3 targets, select_topk 0.1, fuseo1"
    known = {k: v for k, v in verdicts(found).items() if v is not None}
    assert known == {
        f"cuda, of the copy: {case}": True,
        f"triton's rate over cuda's: {case}": False,
        f"merge_tensors over mergekit 0.1.5: {case}": True,
        "peak memory beside inputs and output, of the inputs": False,
        "one launch of 256 tensors of 5120 elements, by a launch of one": True,
    }


def test_what_is_written(tmp_path: Path) -> None:
    stages = [Stage("build", True, 61.0, "done"), Stage("tests", False, 9.0, "exit status 1: x")]
    found = Findings([8, 8], [figure()], notes=["triton: absent"])
    publish([tmp_path / "new"], MACHINE, stages, found)
    content = json.loads((tmp_path / "new/nvidia-h200.json").read_text())
    assert Findings.load(content["findings"]) == found
    assert content["stages"][1]["passed"] is False
    text = (tmp_path / "new/nvidia-h200.md").read_text()
    for words in ("580.1", "abc", "2026-11-22", "exit status 1: x", "90.0 %", "- triton: absent"):
        assert words in text
    assert "Nothing was measured." in markdown(MACHINE, stages, None)


def test_where_results_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUT", raising=False)
    assert gpu_report.folders(None, quick=True) == []
    assert gpu_report.folders(None, quick=False) == [report.RESULTS]
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu_report.folders(Path("there"), quick=True) == [Path("there"), tmp_path]


def shell(name: str, script: str, limit: float = 30.0, **options: Any) -> Job:
    return Job(name, [["bash", "-c", script]], limit, environment={"WORD": "seen"}, **options)


def stages_of(logs: Path, *jobs: Job) -> list[Stage]:
    """Run in 100 seconds; every stage is told of as it ends."""
    told: list[int] = []
    stages = gpu_stages.run_all(jobs, 100.0, logs, lambda s: told.append(len(s)))
    assert told == [*range(1, len(jobs) + 1)]
    return stages


@pytest.mark.slow
def test_a_stage_that_fails_is_told_and_the_next_one_runs(tmp_path: Path) -> None:
    two = [["true"], ["bash", "-c", "echo why; exit 3"], ["touch", str(tmp_path / "x")]]
    good, bad, absent, slow, last = stages_of(
        tmp_path / "logs",
        shell("good", "echo $WORD"),
        Job("two", two, 9),
        Job("absent", [["no-such-program"]], 30),
        shell("slow", "echo begun; sleep 60 & wait", limit=6.0),
        shell("last", "true"),
    )
    assert good.passed and good.note == "seen" and last.passed
    assert bad.passed is False and bad.note == "exit status 3: why"
    assert not (tmp_path / "x").exists()
    assert absent.passed is False and absent.note.startswith("cannot start no-such-program")
    assert slow.passed is False and slow.note.endswith("s: begun") and slow.seconds < 30


def test_commands_that_run_together(tmp_path: Path) -> None:
    """Each waits for the other; one that fails fails the stage."""
    scripts = [
        f"touch {tmp_path}/{mine}; until [ -e {tmp_path}/{other} ]; do sleep 0.1; done; exit {code}"
        for mine, other, code in (("a", "b", 0), ("b", "a", 4))
    ]
    commands = [["bash", "-c", script] for script in scripts]
    [stage] = stages_of(tmp_path / "logs", Job("both", commands, 30, together=True))
    assert not stage.passed and stage.note == "exit status 4"


def test_time_is_kept_for_what_comes_later(tmp_path: Path) -> None:
    """And a stage knows its time."""
    first, kept = stages_of(
        tmp_path, shell("first", "true"), shell("kept", "echo $FUSEO1_SECONDS", 7.0, reserve=96.0)
    )
    assert first.passed is None and first.note == "not run: no time was left"
    assert kept.passed and kept.note == "7"


def test_a_stage_whose_packages_are_missing_is_not_run(tmp_path: Path) -> None:
    """Its note says which they are; it has not passed, and that is no failure."""
    touch = ["touch", str(tmp_path / "x")]
    jobs = [
        Job("merge", [touch], 30, modules=("no_such_module", "json", "no_such_package")),
        Job("there", [["true"]], 30, modules=("json",)),
    ]
    stages = stages_of(tmp_path / "logs", *jobs)
    assert not (tmp_path / "x").exists() and stages[1].passed
    assert stages[0].passed is None
    assert stages[0].note == (
        "not run: missing here: no_such_module no_such_package; CONTRIBUTING.md: how to bring them"
    )
    assert "| not run |" in markdown(MACHINE, stages, None)
    told = "1 of 2 stages passed; NOT RUN, packages are missing: merge"
    assert gpu_stages.outcome(jobs, stages) == (0, told)


@pytest.mark.parametrize(
    ("ended", "status", "told"),
    [
        ([True], 0, "1 of 1 stages passed"),
        ([True, False], 1, "1 of 2 stages passed; FAILED: b"),
        ([True, None], 1, "1 of 2 stages passed; NOT RUN, no time was left: b"),
    ],
)
def test_what_failed_or_had_no_time_is_a_failure(
    ended: list[bool | None], status: int, told: str
) -> None:
    stages = [Stage(name, passed, 0.0, "") for name, passed in zip("ab", ended, strict=False)]
    jobs = [shell(stage.name, "true") for stage in stages]
    assert gpu_stages.outcome(jobs, stages) == (status, told)


def test_what_whole_merges_need_is_looked_for() -> None:
    project = (gpu_stages.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    [dependencies] = re.findall(r"^dependencies = \[$(.*?)^\]$", project, re.M | re.S)
    names = set(re.findall(r'^ +"(\w+)', dependencies, re.M))
    modules = {*gpu_stages.MODULES, *gpu_stages.MERGE_MODULES}
    assert len(names) > 5 and names - {"pyyaml"} <= modules and "yaml" in modules
    contributing = (gpu_stages.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for module in gpu_stages.ENGINE_MODULES:
        assert f" {'PyYAML' if module == 'yaml' else module}" in contributing


def test_the_stages_fit_in_eight_minutes() -> None:
    jobs = gpu_stages.jobs("90-real", False, Path("results"))
    assert [j.name for j in jobs] == [
        *("build", "tests", "memcheck", "racecheck", "initcheck", "the three, triton"),
        *("engine", "bench", "merge"),
    ]
    assert gpu_stages.SECONDS <= 480
    assert sum(j.reserve for j in jobs) <= gpu_stages.SECONDS
    assert all(j.limit >= j.reserve for j in jobs)


def test_what_both_benches_found_is_put_together(tmp_path: Path) -> None:
    there, *nothing = gpu_stages.findings(tmp_path)
    assert (there, nothing) == ({}, [None, WholeMerges()])
    publish([tmp_path], MACHINE, [], Findings([8, 8], [figure()]))
    merges = WholeMerges(630_000_000, 4, notes=["triton: absent"])
    gpu_merge_report.save(tmp_path / "merge", MACHINE, merges)
    assert gpu_stages.findings(tmp_path) == (MACHINE, Findings([8, 8], [figure()]), merges)


def test_the_benches_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of bench/gpu.py, on the host: the kernels emulated, times made up."""
    backend = load_emulated()

    def on_device(
        works: Sequence[gpu_case.MergeContext], repeats: int
    ) -> tuple[list[float], float]:
        for work in works:
            work()
        return [1e-3] * repeats, 1e-5

    monkeypatch.setattr(gpu_case, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_case, "L2", 1)
    for module in (gpu, gpu_case):
        monkeypatch.setattr(module, "on_device", on_device)
    monkeypatch.setattr(gpu, "MANY", 4)
    monkeypatch.setattr(gpu, "load_gpu_backend", lambda name: backend)
    monkeypatch.setattr(gpu, "GPU_BACKENDS", ("cuda",))
    monkeypatch.setattr(gpu_case.Case, "extra_memory", lambda case, backend: 0.01)
    monkeypatch.setattr(gpu, "merge_tensors", lambda tensors, *rest, **options: tensors[0].clone())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    found, published = Findings([4, 320]), []
    options = argparse.Namespace(quick=True, no_peer=True)
    merged = vars(gpu)["merge_tensors"]
    monkeypatch.setattr(gpu, "peer", lambda found, wanted: merged)
    gpu.measure(found, options, lambda: published.append(len(found.figures)))
    calls = {(f.targets, f.dtypes, f.call) for f in found.figures}
    for targets in (1, 2, 3, 7, 15):
        assert (targets, "bfloat16", "merge") in calls
    for dtypes in ("float16", "float32", "bfloat16+float16+float32"):
        assert {(3, dtypes, call) for call in ("merge", "survey", "fuse")} <= calls
    merge = next(f for f in found.figures if f.call == "merge")
    assert merge.gb_per_s == pytest.approx(18 * 4 * 320 / 1e-3 / 1e9)
    clocked = [f.call for f in found.figures if f.call in ("merge_tensors", "mergekit")]
    assert clocked == ["merge_tensors"] * 5 + ["mergekit"] * 3
    assert found.small_ratio == pytest.approx(1.0)
    assert published == sorted(set(published)) and published[-1] == len(found.figures)
    assert verdicts(found)["peak memory beside inputs and output, of the inputs"] is True
