"""The command line of `python -m fuseo1_kernels.verify`."""

from __future__ import annotations

import argparse
import os
from functools import partial

from ..errors import MergeError
from ..version import __version__
from .interruption import Interruption
from .parser import Parser, add_allow_links
from .report import describe_system_error, print_error, print_json, print_lines
from .terminal import say

_EXAMPLES = """\
examples:
  fuseo1-verify OUT
      compare every byte with its checksum
  fuseo1-verify OUT --recompute 20
      and merge 20 random tensors again, from the sources
  fuseo1-verify OUT --json --quiet
      print the result for a program

README.md is where to begin; docs/command.md has exit codes and streams.
"""


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of tensors nor `all`")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        "fuseo1-verify",
        "[OPTION ...] MODEL",
        "Check a merged model against the checksums recorded beside it.",
        _EXAMPLES,
    )
    add = parser.add_argument
    add("model", type=os.path.expanduser, metavar="MODEL", help="directory of a merged model")
    add(
        "--recompute",
        type=_count,
        default=0,
        metavar="N|all",
        help="also merge N random tensors (or all) again, with the reference backend; needs the source models",
    )
    add("--seed", type=int, default=0, help="chooses the tensors to recompute (default 0)")
    add("--threads", "-j", type=int, help="number of threads (default: all cores)")
    add_allow_links(parser)
    add("--json", action="store_true", help="print the result, or the error, as one JSON object")
    add("--quiet", "-q", action="store_true", help="print nothing but problems")
    add("--version", action="version", version=f"fuseo1-kernels {__version__}")
    return parser


def main(argv: list[str] | None = None, *, interruption: Interruption | None = None) -> int:
    """Run the command; return the exit code: 0 if the model is correct, 1 if not, 130 or 143 if interrupted.

    `interruption`: what runs this function already.
    """
    if interruption is None:
        interruption = Interruption("fuseo1-verify")
        return interruption.run(partial(main, argv, interruption=interruption))
    arguments = make_parser().parse_args(argv)
    interruption.as_json = arguments.json
    try:
        return _verify(arguments)
    except (MergeError, OSError, UnicodeError) as error:
        if interruption.number is not None:  # its KeyboardInterrupt became this
            raise
        lines = error.args if isinstance(error, MergeError) else [describe_system_error(error)]
        print_error("fuseo1-verify", *lines, as_json=arguments.json)
        return 1


def _verify(arguments: argparse.Namespace) -> int:
    from ..engine.verify import verify_model
    from ..errors import counted
    from .progress import make_progress

    result = verify_model(
        arguments.model,
        recompute=arguments.recompute,
        seed=arguments.seed,
        threads=arguments.threads,
        allow_links=arguments.allow_links,
        progress=None if arguments.quiet else make_progress(),
    )
    if arguments.json:
        print_json(result)
        return 1 if result.problems else 0
    for problem in result.problems:
        say(f"problem: {problem}")
    if not arguments.quiet:
        again = f", {len(result.recomputed)} merged again" if result.recomputed else ""
        verdict = counted(len(result.problems), "problem") if result.problems else "all as written"
        files, tensors = counted(result.files, "file"), counted(result.tensors, "tensor")
        line = f"{result.directory}: {files}, {tensors}{again}: {verdict} ({result.seconds:.2f} s)"
        print_lines([line])
    return 1 if result.problems else 0
