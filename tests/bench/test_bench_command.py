"""`python -m fuseo1_kernels.bench`: what it prints and writes, its exit codes and its mistakes."""

from __future__ import annotations

import json
import pkgutil
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fuseo1_kernels.bench import cases, figures
from fuseo1_kernels.bench.__main__ import main
from fuseo1_kernels.bench.results import Results
from fuseo1_kernels.errors import BackendError
from fuseo1_kernels.methods import METHODS
from support.paths import ROOT
from support.processes import HEAVY, imported, spawn

TINY = ("--shape", "16x8", "--rounds", "1")


def measured(file: Path, *argv: str) -> Results:
    assert main([*argv, *TINY, "--json", str(file)]) == 0
    return Results.read(file)


def test_every_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(
        tmp_path / "a.json", "all", "--out", "given,new", "--passes", "--backend", "cpu,reference"
    )
    for backend in ("cpu", "reference"):
        calls = {(f.method, f.call) for f in found.figures if f.backend == backend}
        for method in METHODS:
            passes = ["fuse out="] if method != "average" else []
            assert {(method, call) for call in ("merge", "merge out=", *passes)} <= calls
        assert ("sce", "survey 1") in calls and ("linear", "survey 1") not in calls
    for f in found.figures:
        assert len(f.samples_ms) == 4
        assert 0 < f.min_ms == min(f.samples_ms) <= f.ms <= max(f.samples_ms)
        assert f.gb_per_s == pytest.approx(f.nbytes / f.ms / 1e6)
        assert f.of_memcpy == pytest.approx(f.gb_per_s / f.memcpy_gb_per_s)
    printed = capsys.readouterr().out
    for words in (" dare_ties |", "weight=1 density=0.2", "of memcpy", "shape 16x8", "torch 2."):
        assert words in printed


def test_what_identifies_a_case(tmp_path: Path) -> None:
    found = measured(
        *(tmp_path / "a.json", "sce", "--set", "select_topk=0.1", "--dtype", "fp32"),
        *("--targets", "2", "--threads", "1", "--data", "coarse:0.9"),
    )
    (f,) = found.figures
    assert f.parameters["select_topk"] == 0.1 and f.parameters["variant"] == "fuseo1"
    assert (f.method, f.shape, f.dtype, f.targets) == ("sce", [16, 8], "float32", 2)
    assert (f.backend, f.threads, f.data, f.call) == ("cpu", 1, "coarse:0.9", "merge out=")
    assert f.nbytes == (2 * 3 + 1) * 16 * 8 * 4


def test_json_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "-", *TINY]) == 0
    out, err = capsys.readouterr()
    content = json.loads(out)
    assert [f["method"] for f in content["figures"]] == ["sce"]
    assert {"cpu", "isa", "cores", "torch", "date", "version", "commit"} <= content[
        "machine"
    ].keys()
    assert "of memcpy" in err


# --- --compare -----------------------------------------------------------------------------


def slowed(found: Results, file: Path, factor: float) -> str:
    """The same results of a run that took `factor` times as long, as a file."""
    slow = [replace(f, ms=f.ms * factor) for f in found.figures]
    file.write_text(Results(found.machine, slow).dumps())
    return str(file)


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(tmp_path / "a.json", "sce", "--dtype", "bf16", "ties")  # in any order
    slow = slowed(found, tmp_path / "slow.json", 1e6)
    fast = slowed(found, tmp_path / "fast.json", 1e-6)
    capsys.readouterr()
    assert main(["sce", *TINY, "--compare", slow]) == 0
    out = capsys.readouterr().out
    assert "before / now" in out and "1 figure only before: ties" in out
    assert main(["sce", *TINY, "--compare", slow, "--fail-below", "1"]) == 0
    assert main(["sce", *TINY, "--compare", fast]) == 0
    assert main(["sce", *TINY, "--compare", fast, "--fail-below", "1"]) == 1
    assert "fuseo1-bench: 1 figure below 1x" in capsys.readouterr().err


def test_fail_below_fails_where_nothing_can_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(old := tmp_path / "a.json", "ties")
    assert main(["sce", *TINY, "--compare", str(old), "--fail-below", "0.5"]) == 1
    assert "nothing that" in capsys.readouterr().err


def test_old_results_may_be_replaced(tmp_path: Path) -> None:
    measured(file := tmp_path / "a.json", "ties")
    found = measured(file, "sce", "--compare", str(file))
    assert [f.method for f in found.figures] == ["sce"]


# --- mistakes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--shape", "-4x4"], "'-4x4' is not a shape"),
        (["--shape", "4x0"], "'4x0' is not a shape"),
        (["--shape", "4,"], "'' is not a shape"),
        (["--dtype", "int8"], "'int8' is no dtype"),
        (["--targets", "-1"], "'-1' is not a whole number of at least 1"),
        (["--threads", "0"], "'0' is not a whole number of at least 1"),
        (["--rounds", "1.5"], "'1.5' is not a whole number"),
        (["--backend", "gpu"], "'gpu' is no backend; use auto, cpu, reference, cuda, triton"),
        (["--out", "none"], "'none' is no output; use given, new"),
        (["--set", "density"], "'density' is not KEY=VALUE"),
        (["--fail-below", "1"], "--fail-below needs --compare"),
        (["--compare", "a", "--fail-below", "nan"], "'nan' is not a number above 0"),
    ],
)
def test_arguments_that_are_wrong(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([f"{argv[0]}={argv[1]}", *argv[2:]])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sec"], "merge method 'sec'"),
        (["--data", "real"], "data 'real'"),
        (["slerp", "--targets", "2"], "slerp merges exactly 1 model"),
        (["--shape", "99999999x99999999"], "GB are free; choose a smaller --shape"),
        (["--compare", "no/such.json"], "cannot read no/such.json"),
        (["--json", "no/such.json"], "cannot write no/such.json"),
        (["--json", "."], "cannot write ."),
    ],
)
def test_what_cannot_be_done(
    argv: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """One line, and before anything is measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "_measure", None)
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fuseo1-bench: error: ") and words in err and err.count("\n") == 1


def test_a_backend_that_cannot_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str) -> None:
        raise BackendError(f"backend {name} cannot run here: torch finds no GPU")

    monkeypatch.setattr(cases, "load_gpu_backend", refuse)
    assert main(["--backend", "cpu,triton"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        "fuseo1-bench: error: backend triton cannot run here: torch finds no GPU\n",
    )


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "_measure", interrupt)
    assert main([]) == 130
    assert capsys.readouterr().err == "fuseo1-bench: interrupted\n"


# --- processes -----------------------------------------------------------------------------


def test_help_has_examples_and_imports_no_torch() -> None:
    ran = spawn("-X", "importtime", "-m", "fuseo1_kernels.bench", "--help")
    assert ran.code == 0
    assert ran.out.count("\n  fuseo1-bench ") == 3
    assert not imported(ran.err) & HEAVY


def test_the_examples_are_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each of them, at a tiny size."""
    with pytest.raises(SystemExit):
        main(["--help"])
    examples = [
        line.split()[1:]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("  fuseo1-bench ")
    ]
    measured(tmp_path / "before.json", "all")
    monkeypatch.chdir(tmp_path)
    for example in examples:
        for old, new in (("5120x5120,1024x1024", "4x4,5x5"), ("0.9", "1e-9")):
            example = [new if word == old else word for word in example]
        assert main([*example, *(() if "--shape" in example else TINY)]) == 0


def test_it_needs_no_development_extra() -> None:
    """All that is installed beside the package's own requirements is hidden."""
    hidden = "hypothesis mergekit peft psutil pybind11 pytest pytest_benchmark safetensors"
    hidden += " tokenizers transformers triton"
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({hidden.split()!r}))
sys.argv = ["bench", "sce", "ties", "--shape", "8x8", "--rounds", "1"]
runpy.run_module("fuseo1_kernels.bench", run_name="__main__")
"""
    ran = spawn("-c", code)
    assert ran.code == 0, ran.err
    assert " ties |" in ran.out


def test_the_installed_command() -> None:
    """The function that pyproject.toml names exists."""
    text = (ROOT / "pyproject.toml").read_text()
    (target,) = re.findall(r'^fuseo1-bench = "(.+)"$', text, re.MULTILINE)
    assert pkgutil.resolve_name(target) is main
