"""Prints figures as a table, and the machine they were measured on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..methods import METHODS
from .figures import Figure

#: How bytes are counted.
RULE = (
    "GB/s: a merge counts every input once, or twice where its method surveys first, and the output once;\n"
    "a survey the inputs; the fuse the inputs and the output. memcpy copies the same inputs, between all other\n"
    "calls, and counts twice their bytes."
)

_AXES = ("shape", "dtype", "targets", "backend", "threads", "data")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * (width - 1) + ":" for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def figures_text(figures: Sequence[Figure]) -> str:
    """Return the figures as a Markdown table, under what all of them share."""
    header, labels = labels_of(figures)
    rows = [
        [
            *label,
            f"{f.ms:.3f}",
            f"{f.min_ms:.3f}",
            f"{f.gb_per_s:.1f}",
            f"{f.memcpy_gb_per_s:.1f}",
            f"{f.of_memcpy:.0%}",
        ]
        for f, label in zip(figures, labels, strict=True)
    ]
    columns = [*header, "ms", "min ms", "GB/s", "memcpy GB/s", "of memcpy"]
    return f"{shared(figures)}\n\n{table(columns, rows)}\n\n{RULE}"


def labels_of(figures: Sequence[Figure]) -> tuple[list[str], list[list[str]]]:
    """Return what tells figures apart: the columns' names, and of every figure their texts."""
    axes = [axis for axis in _AXES if len({_text(f, axis) for f in figures}) > 1]
    told = {method: _told(method, figures) for method in {f.method for f in figures}}
    labels = []
    for f in figures:
        values = " ".join(f"{k}={_short(f.parameters.get(k))}" for k in told[f.method])
        labels.append([f.method, values, *(_text(f, axis) for axis in axes), f.call])
    return ["method", "parameters", *axes, "call"], labels


def shared(figures: Sequence[Figure]) -> str:
    """Return a line of what all figures have in common."""
    axes = [axis for axis in _AXES if len({_text(f, axis) for f in figures}) == 1]
    return ", ".join(f"{axis} {_text(figures[0], axis)}" for axis in axes)


def machine_line(machine: dict[str, Any]) -> str:
    """Return what machine.describe() found as a line."""
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    commit = f" ({machine['commit']})" if machine["commit"] else ""
    return (
        f"{machine['cpu']} ({machine['cores']} cores, {machine['isa'] or 'kernels not built'}){gpu},"
        f" {machine['memory_gib']} GiB, {machine['kernel']}; Python {machine['python']}, torch {machine['torch']},"
        f" fuseo1-kernels {machine['version']}{commit}; {machine['date']}, load before it {machine['load']}"
    )


def _told(method: str, figures: Sequence[Figure]) -> list[str]:
    """The method's parameters that have, in any figure, another value than by default."""
    known = METHODS[method].parameters if method in METHODS else {}
    found = [f.parameters for f in figures if f.method == method]
    keys = dict.fromkeys(key for parameters in found for key in parameters)
    return [
        key
        for key in keys
        if key not in known or any(p.get(key) != known[key].default for p in found)
    ]


def _text(figure: Figure, axis: str) -> str:
    value = getattr(figure, axis)
    return "x".join(map(str, value)) if axis == "shape" else str(value)


def _short(value: Any) -> str:
    """A parameter's value, or its values of all models, as --set takes them."""
    if isinstance(value, list):
        return ",".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
