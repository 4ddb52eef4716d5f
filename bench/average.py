"""An average of 32 checkpoints of 0.16 B, from the command line, beside reading them once and torch's own loop.

    python bench/average.py [--quick] [--runs 3] [--no-peer] [--results DIR]

Reading is what any average must do: all weight files front to back, in pieces of 8 MiB, by as many threads
as the average has. In each turn the files are read and averaged, in changing order, and the ratio is taken
turn by turn; warm runs find the files in the page cache, cold ones do not (page_cache.make_cold). The peer
loads one checkpoint after the other and adds it up in fp32. Needs 11 GB of disk, and as much free memory
for warm runs.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from checkpoints import SIZES, parameters, write_model
from growth import divided
from machine import describe
from merges import prepare
from plain_copy import buffer
from processes import Run, run
from report import WORK, median, parser, publish, table
from safetensors.torch import load_file

from fuseo1_kernels.bench.data import BASE_STD, fine_tune
from fuseo1_kernels.system import resolve_threads

AVERAGE = (sys.executable, "-m", "fuseo1_kernels.average")
CHECKPOINTS = 32
_PIECE = 8 << 20
_SCHEDULES = {"sma": (), "ema": ("--schedule", "ema", "--decay", "0.9")}

_PEER = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
*checkpoints, out = map(Path, sys.argv[1:])
mean = None
for checkpoint in checkpoints:
    state = load_file(checkpoint / "model.safetensors")
    if mean is None:
        mean = {name: tensor.float() for name, tensor in state.items()}
    else:
        for name, tensor in state.items():
            mean[name] += tensor.float()
out.mkdir()
save_file({n: (t / len(checkpoints)).to(state[n].dtype) for n, t in mean.items()}, out / "model.safetensors")
"""


@dataclass(frozen=True)
class Turn:
    """Seconds of one reading of all files, and an average right before or after it."""

    cache: str
    schedule: str
    read: float
    ours: Run


def make_checkpoints(folder: Path, quick: bool) -> tuple[list[Path], int]:
    """Write the checkpoints of a run: light steps from one model; return them, and how many parameters each has."""
    size = SIZES["tiny"] if quick else divided(SIZES["0.5B"], 4)
    generator = torch.Generator().manual_seed(0)
    first = {
        name: (torch.randn(shape, generator=generator) * BASE_STD).to(torch.bfloat16)
        for name, shape in size.shapes().items()
    }
    paths = [folder / f"checkpoint-{(number + 1) * 100}" for number in range(CHECKPOINTS)]
    for path in paths:
        write_model(path, size, {n: fine_tune(t, 1e-3, generator) for n, t in first.items()})
    return paths, parameters(size)


def read_once(files: Sequence[Path], threads: int) -> float:
    """Read every byte of `files`, each by one thread; return the seconds."""
    left = iter(files)
    lock = threading.Lock()

    def work() -> None:
        piece = buffer(_PIECE)
        while True:
            with lock:
                file = next(left, None)
            if file is None:
                return
            descriptor, at = os.open(file, os.O_RDONLY), 0
            while count := os.preadv(descriptor, [piece], at):
                at += count
            os.close(descriptor)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


def average(paths: Sequence[Path], out: Path, program: Sequence[str], *options: str) -> Run:
    return run([*program, *map(str, paths), str(out), *options])


def take_turn(
    paths: Sequence[Path], out: Path, schedule: str, *, cold: bool, ours_first: bool
) -> Turn:
    files = [path / "model.safetensors" for path in paths]
    ours: Run | None = None
    seconds = 0.0
    for reads in (not ours_first, ours_first):
        prepare(files, cold)
        if reads:
            seconds = read_once(files, resolve_threads(None))
        else:
            ours = average(paths, out, AVERAGE, *_SCHEDULES[schedule], "--quiet")
            shutil.rmtree(out)
    assert ours is not None
    return Turn("cold" if cold else "warm", schedule, seconds, ours)


def turns_table(turns: Sequence[Turn], size: int) -> str:
    rows = []
    for cache, schedule in dict.fromkeys((t.cache, t.schedule) for t in turns):
        same = [t for t in turns if (t.cache, t.schedule) == (cache, schedule)]
        read, ours = median(t.read for t in same), median(t.ours.seconds for t in same)
        ratios = sorted(t.ours.seconds / t.read for t in same)
        rows.append(
            [
                *(cache, schedule, str(len(same)), f"{read:.2f}", f"{size / read / 1e9:.2f}"),
                *(
                    f"{ours:.2f}",
                    f"{median(ratios):.2f}x",
                    f"{ratios[0]:.2f}x to {ratios[-1]:.2f}x",
                ),
                f"{max(t.ours.held for t in same) / 1e6:.0f}",
            ]
        )
    header = ["page cache", "schedule", "turns", "seconds to read once", "GB/s"]
    return table([*header, "to average", "of reading", "all turns", "peak MB"], rows)


def beside_peer(paths: Sequence[Path], out: Path) -> tuple[str, dict[str, object]]:
    """Average warm by torch's loop and by ours; compare the results."""
    files = [path / "model.safetensors" for path in paths]
    runs, states = {}, {}
    for name, program in (("torch", (sys.executable, "-c", _PEER)), ("ours", AVERAGE)):
        prepare(files, False)
        runs[name] = average(paths, out, program)
        states[name] = load_file(out / "model.safetensors")
        shutil.rmtree(out)
    wrong = sum(int((t != states["ours"][n]).sum()) for n, t in states["torch"].items())
    share = wrong / sum(t.numel() for t in states["torch"].values())
    rows = [
        [name, f"{taken.seconds:.2f}", f"{taken.held / 1e6:.0f}"] for name, taken in runs.items()
    ]
    rows[1].append(f"{runs['torch'].seconds / runs['ours'].seconds:.1f}x")
    rows[0].append("")
    text = table(["sma, warm", "seconds", "peak MB", "over torch"], rows)
    text += f"\n\nOf the elements, {share:.2g} differ from torch's, which rounds every sum to fp32."
    figures = {name: asdict(taken) for name, taken in runs.items()}
    return text, {**figures, "share that differs": share}


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--runs", type=int, help="of every kind (default 3; 1 with --quick)")
    options = arguments.parse_args()
    runs = options.runs or (1 if options.quick else 3)

    described = describe()
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK, prefix="average-") as folder:
        paths, count = make_checkpoints(Path(folder), options.quick)
        out = Path(folder) / "out"
        size = sum((path / "model.safetensors").stat().st_size for path in paths)
        turns = [
            take_turn(paths, out, schedule, cold=cold, ours_first=number % 2 == 1)
            for number in range(runs)
            for cold in (False, True)
            for schedule in _SCHEDULES
        ]
        sections = [turns_table(turns, size)]
        figures: dict[str, object] = {"turns": [asdict(turn) for turn in turns]}
        if not options.no_peer:
            text, figures["peer"] = beside_peer(paths, out)
            sections.append(text)
    title = f"An average of {CHECKPOINTS} checkpoints of {count / 1e9:.3g} B parameters, bf16, {size / 1e9:.2f} GB"
    publish(options, described, "average", title, sections, figures)


if __name__ == "__main__":
    main()
