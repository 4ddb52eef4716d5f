"""`python -m fuseo1_kernels.bench [METHOD ...]`: time the kernels from the command line."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from ..cli.interruption import Interruption
from ..cli.terminal import say
from ..errors import MergeError, counted
from .arguments import make_parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for an error or --fail-below, 130 or 143 if interrupted."""
    return Interruption("fuseo1-bench").run(partial(_main, argv))


def _main(argv: list[str] | None) -> int:
    parser = make_parser()
    options = parser.parse_intermixed_args(argv)
    if options.fail_below is not None and options.compare is None:
        parser.error("--fail-below needs --compare")
    try:
        return _bench(options)
    except MergeError as error:
        say(f"fuseo1-bench: error: {error.args[0]}", *error.args[1:])
        return 1
    except MemoryError:
        say("fuseo1-bench: error: out of memory; choose a smaller --shape or fewer --targets")
        return 1


def _bench(options: argparse.Namespace) -> int:
    from ..methods import METHODS
    from ..system import resolve_threads
    from .cases import make_cases
    from .compare import Comparison
    from .data import Data
    from .figures import measure
    from .machine import describe
    from .report import figures_text, machine_line
    from .results import Results

    methods = options.methods or ["sce"]
    cases = make_cases(
        list(METHODS) if "all" in methods else methods,
        options.set,
        shapes=options.shape,
        dtypes=options.dtype,
        targets=options.targets,
        backends=options.backend,
        threads=[resolve_threads(threads) for threads in options.threads],
        data=[str(Data.parse(text)) for text in options.data or ["gauss"]],
    )
    before = Results.read(Path(options.compare)) if options.compare else None
    _check_writable(options.json)
    machine = describe()
    now = Results(
        machine,
        measure(cases, outputs=options.out, passes=options.passes, rounds=options.rounds),
    )

    text = [figures_text(now.figures), machine_line(machine)]
    comparison = Comparison.of(before, now) if before else None
    if comparison:
        text.append(comparison.text())
    # Standard output is for the JSON, where that is asked for.
    for line in "\n\n".join(text).splitlines():
        say(line, stream=sys.stderr if options.json == "-" else sys.stdout)
    if options.json:
        _write(options.json, now.dumps())
    if comparison is None or options.fail_below is None:
        return 0
    if not comparison.pairs:
        raise MergeError(f"nothing that {options.compare} has was measured")
    slower = len(comparison.slower_than(options.fail_below))
    if slower:
        what = f"{counted(slower, 'figure')} below {options.fail_below:g}x {options.compare}"
        say(f"fuseo1-bench: {what}")
    return 1 if slower else 0


def _check_writable(target: str | None) -> None:
    """Say so before anything is measured, if the results could not be written."""
    if target is None or target == "-":
        return
    path = Path(target)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise MergeError(f"cannot write {path}: no file can be written there")


def _write(target: str, text: str) -> None:
    if target == "-":
        print(text, end="")
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise MergeError(f"cannot write {target}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
