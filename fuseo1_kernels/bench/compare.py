"""One run beside an earlier one."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ..errors import counted
from .figures import Figure
from .report import labels_of, shared, table
from .results import Results

_CASE = ("method", "parameters", "shape", "dtype", "targets", "backend", "threads", "data", "call")
# Times say something about the program where these are the same.
_MACHINE = ("cpu", "cores", "isa", "gpu", "torch")


@dataclass(frozen=True)
class Pair:
    """A call of a case in both runs."""

    before: Figure
    now: Figure

    @property
    def ratio(self) -> float:
        """The earlier median time by this run's: above 1, this run is faster."""
        return self.before.ms / self.now.ms


@dataclass(frozen=True)
class Comparison:
    """Two runs: what both measured, and how they differ otherwise."""

    pairs: list[Pair]
    notes: list[str]

    @classmethod
    def of(cls, before: Results, now: Results) -> Comparison:
        """Compare two runs."""
        earlier = {_key(f): f for f in before.figures}
        pairs = [Pair(earlier.pop(_key(f)), f) for f in now.figures if _key(f) in earlier]
        new = len(now.figures) - len(pairs)
        then = ", ".join(str(before.machine.get(key)) for key in ("version", "commit", "date"))
        notes = [f"before: {then}"]
        for key in _MACHINE:
            old, this = before.machine.get(key), now.machine.get(key)
            if old != this:
                notes.append(f"another machine: {key} was {old}, is {this}")
        if earlier:
            notes.append(f"{counted(len(earlier), 'figure')} only before: {_named(earlier)}")
        if new:
            notes.append(f"{counted(new, 'figure')} only now")
        return cls(pairs, notes)

    def slower_than(self, ratio: float) -> list[Pair]:
        """Return what both measured and whose ratio is below `ratio`."""
        return [pair for pair in self.pairs if pair.ratio < ratio]

    def text(self) -> str:
        """Return a Markdown table of both runs, and notes."""
        if not self.pairs:
            return "\n".join(["no case was measured before and now", *self.notes])
        figures = [pair.now for pair in self.pairs]
        header, labels = labels_of(figures)
        rows = [
            [
                *label,
                f"{pair.before.ms:.3f}",
                f"{pair.now.ms:.3f}",
                f"{pair.ratio:.2f}x",
                f"{pair.before.of_memcpy:.0%}",
                f"{pair.now.of_memcpy:.0%}",
            ]
            for pair, label in zip(self.pairs, labels, strict=True)
        ]
        columns = [*header, "ms before", "now", "before / now", "of memcpy before", "now"]
        return "\n\n".join([shared(figures), table(columns, rows), "\n".join(self.notes)])


def _key(figure: Figure) -> str:
    """The key of a case and a call, the same in every run."""
    return json.dumps([getattr(figure, name) for name in _CASE], sort_keys=True)


def _named(figures: dict[str, Figure]) -> str:
    """The first few."""
    _, labels = labels_of(list(figures.values()))
    most = 3
    shown = [" ".join(filter(None, label)) for label in labels[:most]]
    return "; ".join(shown) + ("; ..." if len(labels) > most else "")
