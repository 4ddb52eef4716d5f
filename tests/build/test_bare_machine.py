"""bench/gpu.sh on a machine that has what CONTRIBUTING.md asks for: its stages import nothing else.

Each test is a process of its own to which no other package seems to be installed (support/bare_machine.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import gpu_jobs
import pytest
from gpu_jobs import ROOT

from support import bare_machine

STAGES = gpu_jobs.jobs("90-real", False, Path("results"))
PYTEST = ("pytest", "-q", "-p", "no:cacheprovider")
#: These modules' distributions have other names.
NAMES = {"yaml": "PyYAML"}


def on_bare_machine(*argv: str, brought: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run `python -m ARGV...` as if only the required distributions and those in `brought` were installed."""
    more = ["--and", ",".join(NAMES.get(b, b) for b in brought)] if brought else []
    path = os.pathsep.join(
        (*(str(ROOT / p) for p in ("", "tests", "bench")), *filter(None, sys.path))
    )
    return subprocess.run(
        [sys.executable, "-m", "support.bare_machine", *more, *argv],
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def run_by(stages: Sequence[gpu_jobs.Job]) -> tuple[list[str], list[str]]:
    """The test files, and the modules of bench, that stages run."""
    words = [word for stage in stages for command in stage.commands for word in command]
    tests = sorted({w for w in words if w.startswith("tests/")})
    return tests, sorted({Path(w).stem for w in words if w.startswith("bench/")})


def test_nothing_else_is_there() -> None:
    """A hidden distribution seems not installed, both to code that asks first and to code that imports it."""
    code = "import importlib.util as i; assert i.find_spec('xxhash') is None; import xxhash"
    script = f"import runpy, sys; exec({code!r})"
    ran = on_bare_machine("timeit", "-n", "1", "-r", "1", script)
    assert "ModuleNotFoundError: No module named 'xxhash'" in ran.stderr
    assert "hypothesis" not in bare_machine.with_needs(bare_machine.THERE)
    assert {"torch", "sympy", "pluggy"} <= bare_machine.with_needs(bare_machine.THERE)


def test_what_is_there_is_what_the_script_asks_for() -> None:
    tools = {"cmake", "ninja"}
    assert {*gpu_jobs.MODULES, *tools} == {*bare_machine.THERE}
    assert tools <= {*gpu_jobs.TOOLS}


@pytest.mark.slow
@pytest.mark.parametrize("brought", [(), gpu_jobs.ENGINE_MODULES], ids=["bare", "for merges"])
def test_the_stages_can_begin(brought: Sequence[str]) -> None:
    """All test files are imported, and so is what the benches import."""
    there = {*gpu_jobs.MODULES, *brought}
    tests, benches = run_by([s for s in STAGES if there.issuperset(s.modules)])
    assert {"tests/backends/test_gpu.py", "tests/in_memory/test_torch_ops.py"} <= {*tests}
    assert benches == (["gpu", "gpu_merge"] if brought else ["gpu"])
    ran = on_bare_machine(*PYTEST, "--collect-only", *tests, brought=brought)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for bench in (*benches, "gpu_stages"):
        ran = on_bare_machine(bench, "--help", brought=brought)
        assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
@pytest.mark.toolchain
def test_merges_by_every_method_need_nothing_else() -> None:
    """Nor does what is imported only while they run."""
    ran = on_bare_machine(*PYTEST, "tests/backends/cuda/test_on_host.py", "-k", "every_method")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout and "skipped" not in ran.stdout
