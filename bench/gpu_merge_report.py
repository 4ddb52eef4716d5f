"""The results of bench/gpu_merge.py as JSON and Markdown: whole merges beside plain copies, and equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from goals import Goal, at_most, verdict
from plain_copy import Copy
from report import SELECT_TOPK, median, table, write

#: The time of a whole merge on a GPU, by that of the slower plain copy.
OF_SLOWER = 1.3
#: "cuda" and "triton" are backends, on the GPU.
GPU, CPU = "cuda", "cpu"
_NAME = "merge"


@dataclass(frozen=True)
class Turn:
    """Right after each other: plain copies, a tiny merge, and merges.

    Attributes:
        program: the backend.
        copy: inputs to the device; as many bytes as the output to the host, and written; the file synced.
        start: seconds of the tiny merge, a process like the others.
        merges: select_topk, as text, to seconds.
    """

    program: str
    copy: Copy
    start: float
    merges: dict[str, float]

    @property
    def slower(self) -> float:
        """The seconds of the slower plain copy."""
        return max(self.copy.read, self.copy.write + self.copy.sync)


@dataclass
class WholeMerges:
    """All that was measured. `notes` say what could not be."""

    parameters: int = 0
    models: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    turns: list[Turn] = field(default_factory=list)
    # Program to select_topk to the digest of the output's weights.
    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    # Program to what it said that it ran on.
    ran: dict[str, str] = field(default_factory=dict)
    # By plain copy, by bytes of a piece: seconds.
    tried: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, content: Mapping[str, Any]) -> WholeMerges:
        found = cls(**{k: v for k, v in content.items() if k != "turns"})
        found.turns = [Turn(**(t | {"copy": Copy(**t["copy"])})) for t in content["turns"]]
        return found

    def of(self, program: str) -> list[Turn]:
        return [turn for turn in self.turns if turn.program == program]

    def same(self, program: str, topk: str) -> bool | None:
        """Whether a program's output is the CPU's, byte for byte; None: not both are known."""
        known = [self.digests.get(name, {}).get(topk) for name in (program, CPU)]
        return None if None in known else known[0] == known[1]


def save(folder: Path, machine: Mapping[str, str], found: WholeMerges) -> None:
    """Write merge.json: bench/gpu_stages.py makes it a part of the whole report."""
    write(folder, _NAME, {"machine": dict(machine), "merges": asdict(found)})


def saved(folder: Path) -> tuple[dict[str, str], WholeMerges] | None:
    """Return the machine and what was found on it, as far as it came."""
    file = folder / f"{_NAME}.json"
    if not file.exists():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    return content["machine"], WholeMerges.load(content["merges"])


def ratio(found: WholeMerges, program: str, topk: str, *, start: bool = True) -> float | None:
    """Return the time of a merge by the slower plain copy's, turn by turn, the median; `start`: its own included."""
    ratios = [
        (turn.merges[topk] - (0.0 if start else turn.start)) / turn.slower
        for turn in found.of(program)
        if topk in turn.merges
    ]
    return median(ratios) if ratios else None


def goals(found: WholeMerges) -> list[Goal]:
    """Every goal beside what was reached."""
    rows = []
    size = f", {found.parameters / 1e9:.2f} B x {found.models}" if found.models else ""
    for topk in map("{:g}".format, SELECT_TOPK):
        what = f"whole merge, cuda, of the slower plain copy: page cache to page cache{size}, select_topk {topk}"
        rows.append(at_most(what, OF_SLOWER, ratio(found, GPU, topk), "x"))
        rest = ratio(found, GPU, topk, start=False)
        rows.append(
            at_most(f"the same, its start taken off: select_topk {topk}", OF_SLOWER, rest, "x")
        )
    for program in (GPU, *sorted({t.program for t in found.turns} - {GPU, CPU})):
        same = [found.same(program, topk) for topk in map("{:g}".format, SELECT_TOPK)]
        known = [one for one in same if one is not None]
        reached = f"{sum(known)} of {len(known)}" if known else "not measured"
        what = f"whole merge, {program}: outputs with the CPU's bytes"
        met = False if False in known else None if None in same else True
        rows.append(Goal(what, f"{len(same)} of {len(same)}", reached, met))
    return rows


def sections(found: WholeMerges) -> list[str]:
    """Return the Markdown of what was measured."""
    made = ["## Whole merges"]
    if found.turns:
        made += [_explained(found), _merges(found), _copies(found), _tried(found)]
    else:
        made.append("None was measured.")
    return made + [f"- {note}" for note in found.notes]


def _explained(found: WholeMerges) -> str:
    return (
        f"{found.models} models of {found.parameters / 1e6:.1f} million parameters in bf16. A merge is a process of"
        " its own, from its start to its end; the inputs are in the page cache, the output is synced. In each turn"
        " plain copies come first: one thread reads all inputs while the device copies what was read before"
        " (page-locked, double buffers); and it writes as many bytes as the output has while the device copies the"
        " next ones to the host, and syncs them. The ratio is to the slower of these two, turn by turn. A start is"
        " the same command on tiny models, with a context of another process on the GPU."
        f" Backends: {'; '.join(found.ran.values()) or 'not told'}."
    )


def _merges(found: WholeMerges) -> str:
    rows = []
    for program in dict.fromkeys(turn.program for turn in found.turns):
        turns = found.of(program)
        for topk in dict.fromkeys(topk for turn in turns for topk in turn.merges):
            seconds = [turn.merges[topk] for turn in turns if topk in turn.merges]
            ratios = [ratio(found, program, topk, start=start) or 0.0 for start in (True, False)]
            rows.append(
                [
                    program,
                    topk,
                    str(len(seconds)),
                    f"{median(seconds):.2f}",
                    f"{min(seconds):.2f}",
                    f"{median(turn.start for turn in turns):.2f}",
                    *(f"{value:.2f}x" for value in ratios),
                    "-" if program == CPU else verdict(found.same(program, topk)),
                ]
            )
    header = ["backend", "select_topk", "runs", "seconds", "min", "a start"]
    return table([*header, "of the slower copy", "without the start", "the CPU's bytes"], rows)


def _copies(found: WholeMerges) -> str:
    copies = [turn.copy for turn in found.turns]
    ways = {
        f"read {found.input_bytes / 1e9:.2f} GB, and to the device": [c.read for c in copies],
        f"{found.output_bytes / 1e9:.2f} GB to the host, and write": [c.write for c in copies],
        "fsync": [c.sync for c in copies],
        "the slower of the two": [turn.slower for turn in found.turns],
    }
    rows = [
        [what, str(len(s)), f"{median(s):.2f}", f"{min(s):.2f}", f"{max(s):.2f}"]
        for what, s in ways.items()
    ]
    return table(["plain copy", "copies", "seconds", "min", "max"], rows)


def _tried(found: WholeMerges) -> str:
    rows = []
    for what, seconds in found.tried.items():
        best = min(seconds.values())
        rows.append(
            [what, *(f"**{s:.2f}**" if s == best else f"{s:.2f}" for s in seconds.values())]
        )
    sizes = next(iter(found.tried.values()), {})
    return table(["seconds of a part, by piece", *(f"{int(s) >> 20} MiB" for s in sizes)], rows)
