"""The reports that a merge, a dry run and --list-recipes print."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from .terminal import as_message, escaped, say, say_json

if TYPE_CHECKING:
    from ..engine.dry_run import DryRun
    from ..engine.result import MergeResult
    from ..engine.verify import VerifyResult


def print_lines(lines: list[str]) -> None:
    """Print each of the lines to standard output."""
    for line in lines:
        say(line, stream=sys.stdout)


def print_json(result: DryRun | MergeResult | VerifyResult) -> None:
    """Print a result to standard output as one JSON object, with its messages as they are shown elsewhere."""
    data: dict[str, Any] = result.as_dict()
    for key in ("notes", "problems"):
        if key in data:
            data[key] = [escaped(text) for text in data[key]]
    say_json(data)


def print_error(program: str, error: str, *details: str, as_json: bool) -> None:
    """Print an error to standard error and, with `as_json`, as one JSON object to standard output."""
    try:
        os.getcwd()
    except OSError:
        details += ("the current directory is gone: change to another one, or give absolute paths",)
    begin = f"{program}: error: "
    say(begin + error, *details)
    if as_json:
        say_json({"error": as_message(begin + error, *details).removeprefix(begin)})


def describe_system_error(error: OSError | UnicodeError) -> str:
    """Return the message for an error of the system that nothing has put into better words."""
    from ..errors import file_of

    if isinstance(error, OSError):
        file = file_of(error)
        return f"{file}: {error.strerror or error}" if file else error.strerror or str(error)
    return f"a name does not fit into this locale ({error}); set LC_ALL=C.UTF-8"


def list_recipe_names() -> int:
    """Print every recipe's name and description; return the exit code 0."""
    from ..config.recipes import list_recipes

    for recipe in list_recipes():
        print_lines([recipe.name, f"    {recipe.description}"])
    return 0


def describe_plan(plan: DryRun) -> list[str]:
    """Return the lines of the report on a dry run."""
    from ..errors import counted

    lines = [
        f"tensors      {plan.tensors} ({short(plan.parameters)} parameters, {plan.dtype})",
        f"to read      {short(plan.bytes_to_read)}B (from storage once)",
        f"to write     {short(plan.bytes_to_write)}B in {counted(len(plan.shards), 'file')}",
        f"memory       at most {plan.peak_memory / 2**20:.0f} MiB of headers, buffers and survey state",
    ]
    lines += [f"note: {note}" for note in plan.notes]
    lines += [f"problem: {problem}" for problem in plan.problems]
    return lines


def describe_result(result: MergeResult) -> list[str]:
    """Return the lines of the report on a merge, a table: tensors, bytes, time, rate, energy share of each target."""
    from ..errors import counted
    from .progress import per_second

    files = counted(len(result.shards), "file")
    rows = [
        ("merged into", result.out_dir),
        ("tensors", f"{result.tensors}, {short(result.parameters)} parameters, {files}"),
    ]
    moved = result.bytes_read + result.bytes_written
    if moved:
        rows += [
            ("read", f"{short(result.bytes_read)}B"),
            ("written", f"{short(result.bytes_written)}B"),
            ("time", f"{result.seconds:.2f} s"),
            ("rate", f"{per_second(moved / result.seconds)} read and written"),
            ("backend", result.backend),
        ]
    for i, (model, share) in enumerate(result.energy_share.items()):
        rows.append(("" if i else "energy share", f"{share:7.2%}  {model}"))
    lines = [f"{title:<13}{value}" for title, value in rows]
    if 0 < result.resumed < result.tensors:
        were = "tensor was" if result.resumed == 1 else "tensors were"
        lines.append(f"note: {result.resumed} {were} there from an earlier run")
    if result.exact_path:
        lines.append(
            f"note: {counted(result.exact_path, 'tensor')} took the slower exact top-k path"
        )
    lines += [f"note: {note}" for note in result.notes]
    return lines


def short(number: int) -> str:
    """Format a number with three digits and a decimal prefix."""
    value, prefixes = float(number), iter(("", "k", "M", "G", "T"))
    prefix = next(prefixes)
    while value >= 1000 and prefix != "T":
        value, prefix = value / 1000, next(prefixes)
    return f"{value:.3g} {prefix}"
