"""The commands, run in this process or in one of their own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuseo1_kernels
from fuseo1_kernels.cli import merge
from support.paths import TESTS
from support.tuning import current

#: `fuseo1-merge` for `spawn`.
MERGE = ("-m", "fuseo1_kernels.merge")


@dataclass(frozen=True)
class Run:
    """A run has a command line's exit code and its output."""

    code: int
    out: str
    err: str


def run(*argv: object, main: Callable[..., int] = merge.main) -> Run:
    """`fuseo1-merge ARGV` in this process, or another command by its `main`."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(arg) for arg in argv], tuning=current())
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return Run(code, out.getvalue(), err.getvalue())


def done(*argv: object) -> Run:
    """A command line that succeeds."""
    result = run(*argv)
    assert result.code == 0, result.err
    return result


def merge_json(*argv: object) -> dict[str, Any]:
    """Merge, and return what --json says."""
    result = done(*argv, "--json", "--quiet")
    assert result.out.count("\n") == 1 and result.err == ""
    said: dict[str, Any] = json.loads(result.out)
    return said


def spawn(*argv: object, env: Mapping[str, str] | None = None, **options: Any) -> Run:
    """Python with ARGV in a process of its own, which imports the package that is tested here."""
    ran = subprocess.run(
        [sys.executable, *(str(arg) for arg in argv)],
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )
    return Run(ran.returncode, ran.stdout, ran.stderr)


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process of its own, which imports the package and the helpers that are used here."""
    package = str(Path(fuseo1_kernels.__file__).parents[1])
    path = os.pathsep.join((package, str(TESTS)))
    return {**os.environ, "PYTHONPATH": path, **(changes or {})}


def shown(leader: int) -> str:
    """All that was written to a terminal whose other end is closed: the system hands it on piece by piece."""
    found = b""
    with suppress(OSError):  # EIO, at the end
        while part := os.read(leader, 1 << 16):
            found += part
    os.close(leader)
    return found.decode()


#: Packages that the command line does without.
HEAVY = {"torch", "transformers", "triton", "numpy", "tokenizers", "safetensors"}


def imported(err: str) -> set[str]:
    """The top-level packages in what `-X importtime` printed."""
    lines = [line for line in err.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


def one_error(code: int, err: str, *words: object) -> None:
    """The merge failed with one message that has these words."""
    assert code == 1, (code, err)
    assert err.count("error: ") == 1 and "Traceback" not in err, err
    for word in words:
        assert str(word) in err, (word, err)
