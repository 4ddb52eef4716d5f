"""The command line of `python -m fuseo1_kernels.verify`."""

from __future__ import annotations

import argparse
import json
import sys

from ..errors import MergeError
from ..version import __version__


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of tensors nor `all`")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="fuseo1-verify",
        description="Check a merged model against the checksums recorded beside it.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="directory of a merged model")
    add(
        "--recompute",
        type=_count,
        default=0,
        metavar="N|all",
        help="also merge N random tensors (or all) again, with the reference backend; needs the source models",
    )
    add("--seed", type=int, default=0, help="chooses the tensors to recompute (default 0)")
    add("--threads", "-j", type=int, help="number of threads (default: all cores)")
    add(
        "--allow-links",
        action="append",
        default=[],
        metavar="DIR",
        help="as for fuseo1-merge: a directory outside of a model to which links in it may lead",
    )
    add("--json", action="store_true", help="print the result as one JSON object")
    add("--quiet", "-q", action="store_true", help="print nothing but problems")
    add("--version", action="version", version=f"fuseo1-kernels {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code: 0 if the model is correct, 1 if not, 130 if interrupted."""
    arguments = make_parser().parse_args(argv)
    try:
        return _verify(arguments)
    except MergeError as error:
        print(f"fuseo1-verify: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fuseo1-verify: interrupted", file=sys.stderr)
        return 130


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
        print(json.dumps(result.as_dict()))
        return 1 if result.problems else 0
    for problem in result.problems:
        print(f"problem: {problem}", file=sys.stderr)
    if not arguments.quiet:
        again = f", {len(result.recomputed)} merged again" if result.recomputed else ""
        verdict = counted(len(result.problems), "problem") if result.problems else "all as written"
        print(
            f"{result.directory}: {counted(result.files, 'file')}, "
            f"{counted(result.tensors, 'tensor')}{again}: {verdict} ({result.seconds:.2f} s)"
        )
    return 1 if result.problems else 0
