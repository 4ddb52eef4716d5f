"""The reports that a merge, a dry run and --list-recipes print."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..engine.dry_run import DryRun
    from ..engine.result import MergeResult


def list_recipe_names() -> int:
    """Print every recipe's name and description; return the exit code 0."""
    from ..config.recipes import list_recipes

    for recipe in list_recipes():
        print(f"{recipe.name}\n    {recipe.description}")
    return 0


def describe_plan(plan: DryRun) -> str:
    """Return the report on a dry run."""
    from ..errors import counted

    lines = [
        f"tensors      {plan.tensors} ({short(plan.parameters)} parameters, {plan.dtype})",
        f"to read      {short(plan.bytes_to_read)}B (from storage once)",
        f"to write     {short(plan.bytes_to_write)}B in {counted(len(plan.shards), 'file')}",
        f"memory       at most {plan.peak_memory / 2**20:.0f} MiB of buffers and survey state",
    ]
    lines += [f"note: {note}" for note in plan.notes]
    lines += [f"problem: {problem}" for problem in plan.problems]
    return "\n".join(lines)


def describe_result(result: MergeResult) -> str:
    """Return the report on a merge, as a table: tensors, bytes, time, rate, energy share of each target."""
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
    return "\n".join(lines)


def short(number: int) -> str:
    """Format a number with three digits and a decimal prefix."""
    value, prefixes = float(number), iter(("", "k", "M", "G", "T"))
    prefix = next(prefixes)
    while value >= 1000 and prefix != "T":
        value, prefix = value / 1000, next(prefixes)
    return f"{value:.3g} {prefix}"
