"""bench/gpu.sh runs its stages within their time, and what one did survives all that happens to the next ones."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_jobs
import gpu_kernels
import gpu_merge_report
import gpu_stages
import pytest
from gpu_jobs import Job
from gpu_merge_report import WholeMerges
from gpu_report import Findings, Stage, markdown, publish

MACHINE = {"gpu": "NVIDIA H200", "driver": "580.1", "commit": "abc", "date": "2026-11-22"}


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


def test_no_time_is_kept_for_what_cannot_run(tmp_path: Path) -> None:
    """For want of a package, of a tool, or of a stage that has not passed."""
    first, *others = stages_of(
        tmp_path,
        shell("first", "echo $FUSEO1_SECONDS; exit 1"),
        shell("a", "true", reserve=96.0, modules=("no_such_module",)),
        shell("b", "true", reserve=96.0, tools=("no-such-tool",)),
        shell("c", "true", needs=("first",)),
        shell("d", "true"),
    )
    assert first.note == "exit status 1: 30"
    assert [stage.passed for stage in others] == [None, None, None, True]
    notes = [stage.note.removeprefix("not run: ").split(";")[0] for stage in others]
    assert notes[0] == "missing here: no_such_module" and notes[1] == "missing here: no-such-tool"
    assert notes[2] == "first has not passed"


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
        ([True, None], 1, "1 of 2 stages passed; NOT RUN: b"),
    ],
)
def test_what_failed_or_could_not_begin_is_a_failure(
    ended: list[bool | None], status: int, told: str
) -> None:
    stages = [Stage(name, passed, 0.0, "") for name, passed in zip("ab", ended, strict=False)]
    jobs = [shell(stage.name, "true") for stage in stages]
    assert gpu_stages.outcome(jobs, stages) == (status, told)


def test_what_whole_merges_need_is_looked_for() -> None:
    project = (gpu_jobs.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    [dependencies] = re.findall(r"^dependencies = \[$(.*?)^\]$", project, re.M | re.S)
    names = set(re.findall(r'^ +"(\w+)', dependencies, re.M))
    modules = {*gpu_jobs.MODULES, *gpu_jobs.MERGE_MODULES}
    assert len(names) > 5 and names - {"pyyaml"} <= modules and "yaml" in modules
    contributing = (gpu_jobs.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for module in gpu_jobs.ENGINE_MODULES:
        assert f" {'PyYAML' if module == 'yaml' else module}" in contributing


JOBS = gpu_jobs.jobs("90-real", False, Path("results"))


def test_the_stages_and_their_time() -> None:
    assert [j.name for j in JOBS] == [
        *("build", "tests", "bench", "memcheck", "racecheck"),
        *("triton", "bench-triton", "engine", "merge", "large", "initcheck"),
    ]
    # A command on a lent machine is ended after ten minutes.
    assert gpu_stages.SECONDS + 2 * gpu_stages.GRACE < 590
    assert sum(j.reserve for j in JOBS) <= gpu_stages.SECONDS
    assert all(j.limit >= j.reserve for j in JOBS)
    # Each looks at no other kernels, and has its time even if all before it take theirs.
    for job in JOBS:
        if "compute-sanitizer" in job.tools:
            [command] = job.commands
            assert command[0] == "compute-sanitizer" and "kns=fuseo1" in command
            assert job.reserve >= 30


def test_the_modules_are_built_where_they_are_imported_from() -> None:
    import fuseo1_kernels.backends

    [configure, _] = JOBS[0].commands
    told = [word for word in configure if word.startswith("-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=")]
    [folder] = fuseo1_kernels.backends.__path__
    assert [Path(word.partition("=")[2]) for word in told] == [Path(folder)]


def test_kernels_of_other_sources_are_not_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def linked() -> str:
        command = gpu_kernels.configured(tmp_path / "build", "90-real", linked=tmp_path)
        return command[-1].removeprefix("-DFUSEO1_CUDA_KERNELS=")

    assert linked() == ""
    (tmp_path / "digest").write_text(gpu_kernels.digest("90-real"))
    assert linked() == str(tmp_path / "libfuseo1_cuda.a")
    (tmp_path / "digest").write_text(gpu_kernels.digest("80-real"))
    assert linked() == ""
    (tmp_path / "digest").write_text(gpu_kernels.digest("90-real"))
    sources = tmp_path / "csrc/cuda"
    sources.mkdir(parents=True)
    (sources / "other.cu").write_text("// not these")
    monkeypatch.setattr(gpu_kernels, "ROOT", tmp_path)
    assert linked() == ""


# --- a dry run: every command is a stub ----------------------------------------------------

#: Tells the stage by the command, looks at what has been published when it begins, leaves what a bench would, and does
#: what it is told to do to this stage.
STUB = r"""#!/bin/bash
case "${0##*/} $*" in
  nvidia-smi*) echo 'NVIDIA H200, 580.1, 9.0'; exit ;;
  cmake*) stage=build ;;
  *memcheck*) stage=memcheck ;;
  *racecheck*) stage=racecheck ;;
  *initcheck*) stage=initcheck ;;
  *bench/gpu_merge.py*) stage=merge ;;
  *bench/gpu.py*triton*) stage=bench-triton ;;
  *bench/gpu.py*) stage=bench ;;
  *test_on_gpu*) stage=engine ;;
  *'not triton and'* | *test_torch_ops*) stage=tests ;;
  *'and cuda'*) stage=large ;;
  *'triton and not'*) stage=triton ;;
  *) echo "no stage: $0 $*"; exit 99 ;;
esac
[ -z "$OUT" ] || exit 98
cp "$STUBS/published/nvidia-h200.json" "$STUBS/seen/$stage.json" 2>/dev/null
while [ $# -gt 0 ]; do
  if [ "$1" = --results ]; then mkdir -p "$2"; cp "$STUBS/results/$stage.json" "$2/${3:+nvidia-}$stage.json"; fi
  shift
done
[ "$stage" = "$STUB_STAGE" ] || [ "$STUB_STAGE" = all ] || exit 0
echo "$STUB_HOW: $stage"
if [ "$STUB_HOW" = hangs ]; then trap '' TERM; sleep 60 & wait; sleep 60; fi
exit 7
"""


class DryRun:
    """The whole of gpu_stages.main, with stubs for all programs that it starts."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch) -> None:
        self.home, self._patch = home, patch
        for folder in ("bin", "seen", "results"):
            (home / folder).mkdir()
        for name in ("python", *gpu_jobs.TOOLS):
            stub = home / "bin" / name
            stub.write_text(STUB)
            stub.chmod(0o755)
        publish([home / "results"], MACHINE, [], Findings([8, 8], notes=["cuda"]))
        (home / "results/nvidia-h200.json").rename(home / "results/bench.json")
        publish([home / "results"], MACHINE, [], Findings([8, 8], notes=["triton"]))
        (home / "results/nvidia-h200.json").rename(home / "results/bench-triton.json")
        gpu_merge_report.save(home / "results", MACHINE, WholeMerges(630_000_000, 4))
        patch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.defpath}")
        patch.setenv("STUBS", str(home))
        patch.setenv("OUT", str(home / "out"))
        patch.setattr(sys, "executable", str(home / "bin/python"))
        patch.setattr(sys, "argv", ["gpu_stages.py", "--results", str(home / "published")])
        for module in (gpu_stages, gpu_jobs):
            patch.setattr(module, "WORK", home / "work")
        patch.setattr(gpu_stages, "GRACE", 0.2)
        patch.setattr(gpu_stages, "LEAST", 0.01)
        patch.setattr(gpu_stages, "jobs", self._jobs)

    def _jobs(self, *arguments: Any) -> list[Job]:
        # Long enough for the stubs, and short enough to wait for one that hangs.
        return [replace(j, limit=3.0, reserve=0.0) for j in gpu_jobs.jobs(*arguments)]

    def run(self, stage: str, how: str) -> tuple[int, dict[str, bool | None]]:
        """The exit status and what became of each stage, if one, or all of them, fail or hang."""
        self._patch.setenv("STUB_STAGE", stage)
        self._patch.setenv("STUB_HOW", how)
        status = gpu_stages.main()
        return status, {s["name"]: s["passed"] for s in self.published()["stages"]}

    def published(self) -> dict[str, Any]:
        """The last report, which is in both places."""
        [one, other] = [
            json.loads((self.home / folder / "nvidia-h200.json").read_text())
            for folder in ("published", "out")
        ]
        assert one == other
        found: dict[str, Any] = one
        return found

    def check_reports(self, ended: dict[str, bool | None]) -> None:
        """When a stage begins, the report has all stages before it, and what their benches found; so has the last."""
        names = [*ended]
        for number, name in enumerate(names):
            seen = self.home / f"seen/{name}.json"
            if number == 0 or ended[name] is None:
                assert not seen.exists()
                continue
            told = json.loads(seen.read_text())
            before = names[:number]
            assert [s["name"] for s in told["stages"]] == before
            assert [s["passed"] for s in told["stages"]] == [ended[b] for b in before]
            self._check_figures(told, [b for b in before if ended[b] is not None])
        self._check_figures(self.published(), [n for n in names if ended[n] is not None])

    @staticmethod
    def _check_figures(told: dict[str, Any], ran: Sequence[str]) -> None:
        notes = [n for n, b in (("cuda", "bench"), ("triton", "bench-triton")) if b in ran]
        assert (told["findings"] or {"notes": []})["notes"] == notes
        assert (told["merges"]["models"] == 4) == ("merge" in ran)


@pytest.fixture
def dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DryRun:
    return DryRun(tmp_path, monkeypatch)


def test_a_dry_run(dry_run: DryRun) -> None:
    status, ended = dry_run.run("none", "fails")
    assert status == 0 and list(ended.values()) == [True] * len(JOBS)
    dry_run.check_reports(ended)


@pytest.mark.parametrize(
    ("stage", "how"),
    [
        pytest.param(j.name, how, marks=() if how == "fails" else pytest.mark.slow)
        for j in JOBS
        for how in ("fails", "hangs")
    ],
)
def test_a_stage_that_fails_or_hangs_loses_nothing(stage: str, how: str, dry_run: DryRun) -> None:
    """All stages after it run, too, unless nothing was built."""
    status, ended = dry_run.run(stage, how)
    names = [j.name for j in JOBS]
    others: bool | None = None if stage == "build" else True
    at = names.index(stage)
    expected: dict[str, bool | None] = {**dict.fromkeys(names[:at], True), stage: False}
    expected |= dict.fromkeys(names[at + 1 :], others)
    assert status == 1 and ended == expected
    dry_run.check_reports(ended)
    assert f"{how}: {stage}" in (dry_run.home / "out/nvidia-h200.log").read_text()


@pytest.mark.parametrize(
    ("tool", "module", "stages", "status"),
    [
        ("compute-sanitizer", "", {"memcheck", "racecheck", "initcheck"}, 1),
        ("", "triton", {"triton", "bench-triton"}, 1),
        ("", "pydantic", {"engine", "merge"}, 0),
        ("cmake", "", {j.name for j in JOBS}, 1),
    ],
)
def test_what_is_missing_loses_nothing(
    tool: str,
    module: str,
    stages: set[str],
    status: int,
    dry_run: DryRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = gpu_jobs.absent_modules
    monkeypatch.setattr(
        gpu_jobs, "absent_modules", lambda names: [n for n in names if n == module or there([n])]
    )
    tools = gpu_jobs.absent_tools
    monkeypatch.setattr(
        gpu_jobs, "absent_tools", lambda names: [n for n in names if n == tool or tools([n])]
    )
    ended = dry_run.run("none", "fails")
    assert ended == (status, {j.name: None if j.name in stages else True for j in JOBS})
    dry_run.check_reports(ended[1])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_nothing_at_all_works(how: str, dry_run: DryRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gpu_stages, "jobs", lambda *a: [replace(j, needs=()) for j in dry_run._jobs(*a)]
    )
    status, ended = dry_run.run("all", how)
    assert status == 1 and list(ended.values()) == [False] * len(JOBS)
    dry_run.check_reports(ended)
