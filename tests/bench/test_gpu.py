"""bench/gpu.py measures step by step, and its report sets figures beside goals. These tests need no GPU."""

from __future__ import annotations

import json
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


def test_what_all_benches_found_is_put_together(tmp_path: Path) -> None:
    there, *nothing = gpu_stages.findings(tmp_path)
    assert (there, nothing) == ({}, [None, WholeMerges()])
    ours = Findings([8, 8], [figure()], {"cuda": 0.01}, 2.5, {"1": 1.0}, ["one"])
    publish([tmp_path / "cuda"], MACHINE, [], ours)
    merges = WholeMerges(630_000_000, 4, notes=["triton: absent"])
    gpu_merge_report.save(tmp_path / "merge", MACHINE, merges)
    assert gpu_stages.findings(tmp_path) == (MACHINE, ours, merges)
    others = Findings([8, 8], [figure(backend="triton")], {"triton": 0.02}, notes=["two"])
    publish([tmp_path / "triton"], MACHINE, [], others)
    _, found, _ = gpu_stages.findings(tmp_path)
    both = [figure(), figure(backend="triton")]
    memory = {"cuda": 0.01, "triton": 0.02}
    assert found == Findings([8, 8], both, memory, 2.5, {"1": 1.0}, ["one", "two"])


def test_a_report_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench that is killed while it writes leaves the earlier report."""
    publish([tmp_path], MACHINE, [Stage("build", True, 1.0, "")], None)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert {*before} == {"nvidia-h200.json", "nvidia-h200.md"}

    def half(self: Path, text: str, **_: Any) -> None:
        self.write_bytes(text.encode()[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(KeyboardInterrupt):
        publish([tmp_path], MACHINE, [Stage("build", False, 1.0, "")], None)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_what_raises_loses_nothing_that_was_measured() -> None:
    """Nor what is measured after it."""
    found, published = Findings([8, 8]), []

    def raises() -> None:
        raise ValueError("a compiler's words\nand more of them")

    failed = gpu.measure(
        found,
        [
            ("a", lambda: found.figures.append(figure())),
            ("b", raises),
            ("c", lambda: found.figures.append(figure(targets=7))),
        ],
        lambda: published.append(len(found.figures)),
    )
    assert failed == found.notes == ["b: a compiler's words"]
    assert published == [1, 1, 2]


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
    monkeypatch.setattr(gpu_case.Case, "extra_memory", lambda case, backend: 0.01)
    monkeypatch.setattr(gpu, "merge_tensors", lambda tensors, *rest, **options: tensors[0].clone())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    found, published = Findings([4, 320]), []
    merged = vars(gpu)["merge_tensors"]
    monkeypatch.setattr(gpu, "peer", lambda found, wanted: merged)
    steps = gpu.steps(found, backend, quick=True, with_peer=True)
    assert gpu.measure(found, steps, lambda: published.append(len(found.figures))) == []
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
    assert published == sorted(published) and published[-1] == len(found.figures)
    assert verdicts(found)["peak memory beside inputs and output, of the inputs"] is True
