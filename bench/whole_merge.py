"""Whole merges from the command line: time and memory, ours beside mergekit-yaml's and a plain copy's.

    python bench/whole_merge.py [--size 0.5B] [--models DIR] [--quick] [--no-peer]
                                [--runs 5] [--cold-runs 3] [--peer-runs 1]

Every run is a process of its own, from its start to its end. In each turn a plain copy (plain_copy.py)
and a merge follow each other, the one first in even turns, the other in odd ones, and the ratio is taken
turn by turn. Warm runs find the inputs in the page cache; before each cold copy and each cold merge they
are dropped from it, with the free memory in the same state for both (page_cache.make_cold). Outputs are
deleted and the disk is left to settle before the next run.

Peak memory is what no file backs, of the process and its children, sampled every 20 ms; where it is held
against the promise of --max-memory, in runs of its own, every 2 ms, beside the kernel's high-water mark.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from checkpoints import SIZES, make_siblings, parameters, siblings_in
from machine import describe
from merges import TARGETS, Merges, prepare, weight_files
from plain_copy import Copy, Pieces, copies_table, plain_copy, try_pieces
from processes import MERGE, OFTEN, Run, run
from report import SELECT_TOPK, WORK, median, parser, publish, table

from fuseo1_kernels.engine.options import DEFAULT_MAX_MEMORY

#: What --max-memory does not promise: Python, its modules, the plan.
PYTHON_BYTES = 80_000_000


@dataclass(frozen=True)
class Turn:
    """One copy, one merge of ours, and perhaps one of mergekit-yaml, right after each other."""

    cache: str
    select_topk: float
    copy: Copy
    ours: Run
    mergekit: Run | None


@dataclass(frozen=True)
class Peak:
    """The memory of one merge beside what was promised: --max-memory, and Python's own."""

    select_topk: float
    max_memory: str
    promised: int
    run: Run


@dataclass(frozen=True)
class Bench(Merges):
    """The state that all measurements share."""

    pieces: Pieces
    mergekit: str | None

    def copy(self, cold: bool) -> Copy:
        prepare(self.inputs, cold)
        size = self.inputs[0].stat().st_size
        return plain_copy(self.inputs, size, self.work / "copy", self.pieces, cold=cold)


def take_turn(
    bench: Bench, select_topk: float, *, cold: bool, ours_first: bool, with_peer: bool
) -> Turn:
    """Copy and merge, in the order asked for; then let mergekit-yaml merge, if wanted."""

    def merge(*program: str) -> Run:
        return bench.merge(bench.command(program, select_topk), cold=cold)

    if ours_first:
        ours, copy = merge(*MERGE), bench.copy(cold)
    else:
        copy, ours = bench.copy(cold), merge(*MERGE)
    peer = merge(bench.mergekit) if bench.mergekit is not None and with_peer else None
    return Turn("cold" if cold else "warm", select_topk, copy, ours, peer)


def measure_peaks(bench: Bench) -> list[Peak]:
    """Run merges whose memory is watched closely, at a small budget and at the default one."""
    budgets = [
        ("256MiB", 256 << 20, ("--max-memory", "256MiB")),
        ("default", DEFAULT_MAX_MEMORY, ()),
    ]
    return [
        Peak(
            select_topk,
            name,
            size + PYTHON_BYTES,
            bench.merge(bench.command(MERGE, select_topk, *options), every=OFTEN),
        )
        for name, size, options in budgets
        for select_topk in SELECT_TOPK
    ]


def merges_table(turns: Sequence[Turn]) -> str:
    rows = []
    for cache, select_topk in dict.fromkeys((t.cache, t.select_topk) for t in turns):
        same = [t for t in turns if (t.cache, t.select_topk) == (cache, select_topk)]
        ours = median(t.ours.seconds for t in same)
        peers = [t for t in same if t.mergekit is not None]
        taken = {"ours": [(t.ours, t.copy) for t in same]}
        if peers:
            taken["mergekit-yaml"] = [(t.mergekit, t.copy) for t in peers if t.mergekit]
        for program, runs in taken.items():
            seconds = [done.seconds for done, _ in runs]
            over = median(t.mergekit.seconds for t in peers if t.mergekit) / ours if peers else None
            rows.append(
                [
                    cache,
                    f"{select_topk:g}",
                    program,
                    str(len(runs)),
                    f"{median(seconds):.2f}",
                    f"{min(seconds):.2f}",
                    f"{median(done.seconds / copy.seconds for done, copy in runs):.2f}x",
                    f"{over:.1f}x" if over and program == "ours" else "",
                    f"{max(done.held for done, _ in runs) / 1e6:.0f}",
                ]
            )
    header = ["page cache", "select_topk", "program", "runs", "seconds", "min"]
    return table([*header, "of the copy's time", "over mergekit", "peak MB"], rows)


def turns_table(turns: Sequence[Turn]) -> str:
    rows = [
        [
            t.cache,
            f"{t.select_topk:g}",
            f"{t.copy.read:.2f}",
            f"{t.copy.write:.2f}",
            f"{t.copy.sync:.2f}",
            f"{t.copy.seconds:.2f}",
            f"{t.ours.seconds:.2f}",
            f"{t.ours.seconds / t.copy.seconds:.2f}x",
        ]
        for t in turns
    ]
    header = ["page cache, turn by turn", "select_topk", "copy: read", "write", "fsync", "copy"]
    return table([*header, "ours", "of the copy's time"], rows)


def peaks_table(peaks: Sequence[Peak]) -> str:
    rows = [
        [
            p.max_memory,
            f"{p.select_topk:g}",
            f"{p.promised / 1e6:.0f}",
            f"{p.run.held / 1e6:.0f}",
            f"{p.run.resident / 1e6:.0f}",
            "yes" if p.run.held <= p.promised else "NO",
        ]
        for p in peaks
    ]
    header = ["--max-memory", "select_topk", f"it and {PYTHON_BYTES / 1e6:.0f} MB, in MB"]
    header += ["peak MB, not file-backed", "with pages of files, at most", "kept"]
    return table(header, rows)


def find_mergekit() -> str:
    """Return mergekit-yaml beside this Python or in PATH, or end the program saying how to go on."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which("mergekit-yaml", path=os.pathsep.join([beside, os.environ["PATH"]]))
    if found is None:
        raise SystemExit(
            "there is no mergekit-yaml: pip install mergekit==0.1.5, or pass --no-peer"
        )
    return found


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    add = arguments.add_argument
    add("--size", choices=SIZES, help="of the models (default 0.5B; tiny with --quick)")
    add("--runs", type=int, help="of ours and of the copy, warm (default 5; 1 with --quick)")
    add("--cold-runs", type=int, help="the same, cold (default 3; 1 with --quick)")
    add("--peer-runs", type=int, default=1, help="of mergekit-yaml, warm, at most --runs")
    add("--models", type=Path, metavar="DIR", help="made before by checkpoints.py DIR --size ...")
    options = arguments.parse_args()
    size = options.size or ("tiny" if options.quick else "0.5B")
    mergekit = None if options.no_peer else find_mergekit()
    runs = options.runs or (1 if options.quick else 5)
    cold_runs = options.cold_runs or (1 if options.quick else 3)

    described = describe()
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK, prefix="whole-merge-") as folder:
        work = Path(folder)
        models = (
            siblings_in(options.models, TARGETS)
            if options.models
            else make_siblings(work / "models", size, TARGETS)
        )
        inputs = weight_files(models)
        output_bytes = inputs[0].stat().st_size
        pieces = try_pieces(inputs, output_bytes, work / "copy")
        bench = Bench(models, work, pieces, mergekit)
        turns = [
            take_turn(
                bench,
                select_topk,
                cold=cold,
                ours_first=number % 2 == 1,
                with_peer=number < peer_runs,
            )
            for cold, count, peer_runs in ((False, runs, options.peer_runs), (True, cold_runs, 0))
            for select_topk in SELECT_TOPK
            for number in range(count)
        ]
        peaks = measure_peaks(bench)
        help_seconds = median(run([*MERGE, "--help"]).seconds for _ in range(runs))
        copies: dict[str, Sequence[Copy]] = {
            cache: [t.copy for t in turns if t.cache == cache] for cache in ("warm", "cold")
        }
        sections = [
            merges_table(turns),
            peaks_table(peaks),
            copies_table(copies, inputs, output_bytes),
            pieces.table(),
            turns_table(turns),
            f"`--help` takes {help_seconds:.2f} s.",
        ]
    data = {
        "turns": [asdict(t) for t in turns],
        "peaks": [asdict(p) for p in peaks],
        "pieces": asdict(pieces),
        "help_seconds": help_seconds,
    }
    title = f"Whole merges: {parameters(SIZES[size]):,} parameters, four models, bf16, sce"
    publish(options, described, "whole_merge", title, sections, data)


if __name__ == "__main__":
    main()
