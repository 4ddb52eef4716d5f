"""mergekit-yaml with the kernels inside beside mergekit-yaml itself, and our own merge of the same config.

    python bench/drop_in.py [--size 0.5B] [--models DIR] [--quick] [--runs 3] [--peer-runs 1] [--results DIR]

Every run is a process of its own, from its start to its end, with the inputs in the page cache; figures are medians.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoints import SIZES, Siblings, make_siblings, parameters, siblings_in
from goals import at_least, verdict
from machine import describe
from merges import TARGETS, prepare, weight_files
from processes import MERGE, Run, run
from report import WORK, median, parser, publish, table
from whole_merge import find_mergekit

DROP_IN = (sys.executable, "-m", "fuseo1_kernels.mergekit")

#: By name: merge_method, what all models share, what each target has.
CASES: dict[str, tuple[str, dict[str, float], dict[str, float]]] = {
    "sce 0.1": ("sce", {"select_topk": 0.1}, {}),
    "ties 0.2": ("ties", {}, {"weight": 1.0, "density": 0.2}),
}
GOAL = 5.0


@dataclass(frozen=True)
class Figure:
    """Runs of one program by one config."""

    case: str
    program: str
    runs: list[Run]

    @property
    def seconds(self) -> float:
        return median(run.seconds for run in self.runs)


def write_config(path: Path, models: Siblings, case: str) -> Path:
    method, shared, own = CASES[case]
    config: dict[str, Any] = {
        "merge_method": method,
        "base_model": str(models.base),
        "models": [
            {"model": str(models.base)},
            *({"model": str(target), "parameters": own} for target in models.targets),
        ],
        "parameters": shared,
        "dtype": "bfloat16",
    }
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return path


def measure(
    models: Siblings, work: Path, programs: dict[str, tuple[Sequence[str], int]]
) -> list[Figure]:
    figures = []
    for case in CASES:
        config = write_config(work / "merge.yaml", models, case)
        for name, (program, times) in programs.items():
            runs = []
            for _ in range(times):
                prepare(weight_files(models), cold=False)
                runs.append(run([*program, str(config), str(work / "out")]))
                shutil.rmtree(work / "out")
            figures.append(Figure(case, name, runs))
    return figures


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    add = arguments.add_argument
    add("--size", choices=SIZES, default="0.5B", help="of the models (default 0.5B)")
    add("--models", type=Path, metavar="DIR", help="made before by checkpoints.py")
    add("--runs", type=int, default=3, help="of ours, and with the kernels inside")
    add("--peer-runs", type=int, default=1, help="of mergekit-yaml as it is")
    options = arguments.parse_args()
    size = "tiny" if options.quick else options.size
    times = 1 if options.quick else options.runs
    programs: dict[str, tuple[Sequence[str], int]] = {"fuseo1_kernels.merge": (MERGE, times)}
    if not options.no_peer:
        programs["mergekit-yaml"] = ((find_mergekit(),), options.peer_runs)
        programs["fuseo1-mergekit"] = (DROP_IN, times)

    described = describe()
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK, prefix="drop-in-") as made:
        work = Path(made)
        models = (
            siblings_in(options.models, TARGETS)
            if options.models
            else make_siblings(work / "models", size, TARGETS)
        )
        figures = measure(models, work, programs)
    seconds = {(f.case, f.program): f.seconds for f in figures}
    rows = [
        [f.case, f.program, f"{f.seconds:.2f}", f"{median(r.held for r in f.runs) / 1e6:.0f}"]
        for f in figures
    ]
    sections = [table(["method", "program", "seconds", "peak MB"], rows)]
    if not options.no_peer:
        goals = []
        for case in CASES:
            ratio = seconds[case, "mergekit-yaml"] / seconds[case, "fuseo1-mergekit"]
            goals.append(at_least(f"{case}, with the kernels over without", GOAL, ratio, "x"))
        made_of = [[g.what, g.goal, g.reached, verdict(g.met)] for g in goals]
        sections.append(table(["what", "goal", "reached", "met"], made_of))
    title = f"mergekit-yaml with the kernels: {parameters(SIZES[size]):,} parameters, four models"
    publish(options, described, "drop_in", title, sections, [asdict(f) for f in figures])


if __name__ == "__main__":
    main()
