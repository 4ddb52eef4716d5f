"""How time and memory grow: with the parameters at three targets, and with the targets at one size.

    python bench/growth.py [--quick] [--runs 3] [--models DIR] [--results DIR]

A model of half the size has half the layers and half the vocabulary. All sizes and numbers of targets take
turns, each a plain copy and a merge as in whole_merge.py, page cache warm. --models DIR holds the largest
models, made before by checkpoints.py DIR --size 0.5B. Needs 13 GB of disk for a while.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from checkpoints import SIZES, Siblings, Size, make_siblings, parameters, siblings_in
from machine import describe
from merges import weight_files
from plain_copy import try_pieces
from report import WORK, median, parser, publish, table
from whole_merge import Bench, Turn, take_turn

SELECT_TOPK = (1.0, 0.1)
TARGETS = (1, 3, 7)
USUAL_TARGETS = 3
#: Of the largest size.
DIVISORS = (4, 2, 1)
#: The size that is merged with all numbers of targets.
MIDDLE = 2


@dataclass(frozen=True)
class Case:
    """A recipe on one set of models, and what it moves: every input byte and every output byte."""

    parameters: int
    targets: int
    select_topk: float
    gigabytes: float


def divided(size: Size, divisor: int) -> Size:
    """Return a size with 1 / divisor of the parameters, but for the last norm."""
    return replace(size, layers=size.layers // divisor, vocabulary=size.vocabulary // divisor)


def make_models(work: Path, largest: Size, made: Path | None) -> dict[int, Siblings]:
    """Make models of every size, by divisor: the middle one with as many targets as are ever wanted."""
    models = {}
    for divisor in DIVISORS:
        count = max(TARGETS) if divisor == MIDDLE else USUAL_TARGETS
        if divisor == 1 and made is not None:
            models[divisor] = siblings_in(made, count)
        else:
            models[divisor] = make_siblings(work / str(divisor), divided(largest, divisor), count)
    return models


def make_benches(work: Path, largest: Size, models: dict[int, Siblings]) -> dict[Case, Bench]:
    """Return all cases with what they run on."""
    files = weight_files(models[MIDDLE])
    pieces = try_pieces(files, files[0].stat().st_size, work / "copy")
    benches = {}
    for divisor, made in models.items():
        for targets in TARGETS if divisor == MIDDLE else (USUAL_TARGETS,):
            bench = Bench(Siblings(made.base, made.targets[:targets]), work, pieces, mergekit=None)
            moved = sum(file.stat().st_size for file in [*bench.inputs, bench.inputs[0]])
            for select_topk in SELECT_TOPK:
                count = parameters(divided(largest, divisor))
                benches[Case(count, targets, select_topk, moved / 1e9)] = bench
    return benches


def measure(benches: dict[Case, Bench], runs: int) -> dict[Case, list[Turn]]:
    """Let all cases take turns: a plain copy and a merge each."""
    turns: dict[Case, list[Turn]] = {case: [] for case in benches}
    for number in range(runs):
        for case, bench in benches.items():
            turns[case].append(
                take_turn(
                    bench,
                    case.select_topk,
                    cold=False,
                    ours_first=number % 2 == 1,
                    with_peer=False,
                )
            )
    return turns


def growth_table(turns: dict[Case, list[Turn]], by: str) -> str:
    """Return a Markdown table in which every row is held against the first of its select_topk."""
    rows = []
    for select_topk in SELECT_TOPK:
        same = {case: taken for case, taken in turns.items() if case.select_topk == select_topk}
        seconds = {case: median(t.ours.seconds for t in taken) for case, taken in same.items()}
        first = next(iter(same))
        for case, taken in same.items():
            rows.append(
                [
                    f"{select_topk:g}",
                    f"{case.parameters / 1e9:.3g} B",
                    str(case.targets),
                    f"{case.gigabytes:.2f}",
                    f"{case.gigabytes / first.gigabytes:.2f}x",
                    f"{seconds[case]:.2f}",
                    f"{seconds[case] / seconds[first]:.2f}x",
                    f"{seconds[case] / case.gigabytes:.3f}",
                    f"{median(t.ours.seconds / t.copy.seconds for t in taken):.2f}x",
                    f"{max(t.ours.held for t in taken) / 1e6:.0f}",
                ]
            )
    header = [f"by {by}: select_topk", "parameters", "targets", "GB read and written", "of first"]
    header += ["seconds", "of first", "seconds a GB", "of the copy's time", "peak MB"]
    return table(header, rows)


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    add = arguments.add_argument
    add("--runs", type=int, help="of every merge (default 3; 1 with --quick)")
    add("--models", type=Path, metavar="DIR", help="made before by checkpoints.py DIR --size 0.5B")
    options = arguments.parse_args()
    runs = options.runs or (1 if options.quick else 3)
    largest = replace(SIZES["tiny"], vocabulary=8192) if options.quick else SIZES["0.5B"]

    described = describe()
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK, prefix="growth-") as folder:
        models = make_models(Path(folder), largest, options.models)
        turns = measure(make_benches(Path(folder), largest, models), runs)
    middle = parameters(divided(largest, MIDDLE))
    by_parameters = {c: taken for c, taken in turns.items() if c.targets == USUAL_TARGETS}
    by_targets = {c: taken for c, taken in turns.items() if c.parameters == middle}
    sections = [growth_table(by_parameters, "parameters"), growth_table(by_targets, "targets")]
    data = [asdict(c) | {"turns": [asdict(t) for t in taken]} for c, taken in turns.items()]
    publish(
        options, described, "growth", "How merges grow: bf16, sce, page cache warm", sections, data
    )


if __name__ == "__main__":
    main()
