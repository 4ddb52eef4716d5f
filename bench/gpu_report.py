"""The results of the runs on a GPU as JSON and Markdown: figures beside their goals, and the stages that passed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gpu_merge_report
from goals import Goal, at_least, at_most, verdict
from gpu_merge_report import WholeMerges
from report import chosen, table, write

#: What is asked of select_topk 1, and below it: of a device copy's rate, and over mergekit.
OF_COPY = (0.88, 0.75)
OVER_MERGEKIT = (10.0, 20.0)
TRITON_RATE = 0.9
EXTRA_MEMORY = 0.03
SMALL_LAUNCH = 3.0


@dataclass(frozen=True)
class Figure:
    """One call, measured on one set of tensors.

    Attributes:
        call: "merge" (survey and fuse), "survey", "fuse"; "merge_tensors" and "mergekit" (its merge_tensors).
        ms: median time on the device; of the last two by the clock, with a new output.
        of_copy: the bytes it must move by its time, as a fraction of a device copy's rate just before.
        host_us: what it takes the host to enqueue one.
        passes: reads of the tensor that the survey took.
    """

    call: str
    backend: str
    targets: int
    dtypes: str
    rms: float
    select_topk: float
    variant: str
    ms: float
    gb_per_s: float
    copy_gb_per_s: float
    of_copy: float
    host_us: float
    passes: int
    samples: list[float] = field(repr=False)


@dataclass(frozen=True)
class Stage:
    """The outcome of one stage of bench/gpu.sh."""

    name: str
    passed: bool | None  # None: not run
    seconds: float
    note: str


@dataclass
class Findings:
    """All that was measured. `notes` say what could not be."""

    shape: list[int]
    figures: list[Figure] = field(default_factory=list)
    # Backend to what merge_tensors keeps at most beside inputs and output, as a fraction of the inputs' bytes.
    extra_memory: dict[str, float] = field(default_factory=dict)
    # The time of one launch of 256 small tensors, by that of a launch of one.
    small_ratio: float | None = None
    small_us: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, content: Mapping[str, Any]) -> Findings:
        found = cls(**{k: v for k, v in content.items() if k != "figures"})
        found.figures = [Figure(**f) for f in content["figures"]]
        return found

    def add(self, other: Findings) -> None:
        """Add what another process measured, at the same shape."""
        self.figures += other.figures
        self.extra_memory |= other.extra_memory
        if self.small_ratio is None:
            self.small_ratio, self.small_us = other.small_ratio, other.small_us
        self.notes += other.notes


def goals(found: Findings) -> list[Goal]:
    """Every goal beside what was reached."""
    merges = {
        (f.call, f.backend, f.select_topk, f.variant): f
        for f in found.figures
        if (f.targets, f.dtypes, f.rms) == (3, "bfloat16", 1e-3)
    }
    shape = "x".join(map(str, found.shape))
    rows = []
    for topk, variant in [(1.0, "fuseo1"), *((t, v) for t in (0.5, 0.1) for v in _VARIANTS)]:
        part, times = (wanted[topk < 1] for wanted in (OF_COPY, OVER_MERGEKIT))
        ours = merges.get(("merge", "cuda", topk, variant))
        triton = merges.get(("merge", "triton", topk, variant))
        peer = merges.get(("mergekit", "mergekit", topk, "mergekit"))
        case = f"{shape}, bf16, 3 targets, select_topk {topk:g}, {variant}"
        rows.append(
            at_least(f"cuda, of the copy: {case}", part, ours.of_copy if ours else None, "%")
        )
        ratio = ours.ms / triton.ms if ours and triton else None
        rows.append(at_least(f"triton's rate over cuda's: {case}", TRITON_RATE, ratio, "%"))
        whole = merges.get(("merge_tensors", "cuda", topk, variant))
        over = peer.ms / whole.ms if whole and peer else None
        rows.append(at_least(f"merge_tensors over mergekit 0.1.5: {case}", times, over, "x"))
    rows += _other_operands(found, merges)
    memory = found.extra_memory.get("cuda")
    what = "peak memory beside inputs and output, of the inputs"
    rows.append(at_most(what, EXTRA_MEMORY, memory, "%"))
    what = "one launch of 256 tensors of 5120 elements, by a launch of one"
    rows.append(at_most(what, SMALL_LAUNCH, found.small_ratio, "x"))
    return rows


def _other_operands(found: Findings, merges: Mapping[tuple[Any, ...], Figure]) -> list[Goal]:
    """Other numbers of targets and dtypes: within ten points of three bf16 targets."""
    rows = []
    for f in found.figures:
        plain = merges.get((f.call, f.backend, f.select_topk, f.variant))
        alike = (f.targets, f.dtypes) == (3, "bfloat16") or f.rms != 1e-3
        if alike or f.call != "merge" or f.backend != "cuda" or plain is None:
            continue
        case = f"{f.dtypes}, {f.targets} targets, select_topk {f.select_topk:g}, {f.variant}"
        rows.append(at_least(f"cuda, of the copy: {case}", plain.of_copy - 0.1, f.of_copy, "%"))
    return rows


_VARIANTS = ("fuseo1", "mergekit")


def markdown(
    machine: Mapping[str, str],
    stages: Sequence[Stage],
    found: Findings | None,
    merges: WholeMerges | None = None,
) -> str:
    """The report of one run; `found` and `merges` are None where the benches did not get to measure."""
    sections = [
        f"# On {machine['gpu']}",
        ", ".join(f"{name} {value}" for name, value in machine.items()) + ".",
    ]
    if stages:
        rows = [[s.name, verdict(s.passed, "not run"), f"{s.seconds:.0f}", s.note] for s in stages]
        sections += ["## Stages", table(["stage", "result", "s", "note"], rows)]
    reached = all_goals(found, merges)
    if not reached:
        return "\n\n".join([*sections, "Nothing was measured."]) + "\n"
    sections += ["## Goals", goals_table(reached)]
    if found is not None:
        measured = table(_HEADER, [_row(f) for f in found.figures])
        sections += ["## Measured", _explained(found), measured]
        sections += [f"- {note}" for note in found.notes]
    if merges is not None:
        sections += gpu_merge_report.sections(merges)
    return "\n\n".join(sections) + "\n"


def all_goals(found: Findings | None, merges: WholeMerges | None) -> list[Goal]:
    made = goals(found) if found is not None else []
    return made + (gpu_merge_report.goals(merges) if merges is not None else [])


def goals_table(reached: Sequence[Goal]) -> str:
    rows = [[g.what, g.goal, g.reached, verdict(g.met)] for g in reached]
    return table(["what", "goal", "reached", "met"], rows)


def _explained(found: Findings) -> str:
    small = ", ".join(f"{what}: {us:.1f} us" for what, us in found.small_us.items())
    return (
        "Medians of times on the device. A merge moves two reads of the inputs and one write of the output, a survey"
        " one read, a fuse one read and the write; the copy is torch's, of as many bytes as the inputs have, and moves"
        f" twice that. Small tensors: {small or 'not measured'}."
    )


_HEADER = [
    *("call", "backend", "targets", "dtypes", "rms", "select_topk", "variant", "ms", "GB/s"),
    *("copy", "of-copy", "host-us", "passes"),
]


def _row(f: Figure) -> list[str]:
    case = [f.call, f.backend, str(f.targets), f.dtypes, f"{f.rms:g}", f"{f.select_topk:g}"]
    rates = [f"{f.gb_per_s:.0f}", f"{f.copy_gb_per_s:.0f}", f"{f.of_copy:.1%}"]
    return [*case, f.variant, f"{f.ms:.3f}", *rates, f"{f.host_us:.0f}", str(f.passes)]


def gpu_name() -> dict[str, str]:
    """The first GPU and its driver, as nvidia-smi tells them; empty where it does not."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
        name, driver, capability = told.splitlines()[0].split(", ")
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {}
    return {"gpu": name, "driver": driver, "capability": capability}


def slug(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") or "gpu"


def folders(results: Path | None, quick: bool) -> list[Path]:
    """The folders for results: --results or bench/results (none with --quick), and $OUT if that is set."""
    out = os.environ.get("OUT")
    places = (chosen(results, quick), Path(out) if out else None)
    return [folder for folder in places if folder is not None]


def publish(
    where: Sequence[Path],
    machine: Mapping[str, str],
    stages: Sequence[Stage],
    found: Findings | None,
    merges: WholeMerges | None = None,
) -> None:
    """Write GPU.json and GPU.md to every folder."""
    content = {
        "machine": dict(machine),
        "stages": [asdict(s) for s in stages],
        "goals": [asdict(g) for g in all_goals(found, merges)],
        "findings": asdict(found) if found else None,
        "merges": asdict(merges) if merges else None,
    }
    text = markdown(machine, stages, found, merges)
    for folder in where:
        write(folder, slug(machine["gpu"]), content, text)
