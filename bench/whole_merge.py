"""Whole merges from the command line: time and memory, ours beside mergekit-yaml's and a plain copy's.

    python bench/whole_merge.py [--size 0.5B] [--quick] [--no-peer] [--runs 5] [--peer-runs 1]

Every run is a process of its own, from its start to its end, on inputs that are in the page cache. Memory
is the most that the process and its children held at once that is not backed by a file (RssAnon +
RssShmem), sampled every 20 ms. Outputs are deleted and the disk is left to settle before the next run.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from checkpoints import SIZES, Siblings, make_siblings, siblings_in, write_config
from machine import describe
from report import median, parser, publish, table

SELECT_TOPK = (1.0, 0.1)
TARGETS = 3
_WORK = Path(__file__).resolve().parent.parent / ".work"

_PIECE = 16 << 20
_SAMPLE_EVERY = 0.02
# Looking for new child processes reads all of /proc; it is done once in so many samples.
_CHILDREN_EVERY = 25


@dataclass(frozen=True)
class Run:
    """Seconds and peak bytes of memory, not file-backed, of one process and its children."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Copy:
    """Seconds to read every input byte, to write every output byte, and then to sync the output."""

    read: float
    write: float
    sync: float


@dataclass(frozen=True)
class Figure:
    """All runs of one program on one recipe."""

    select_topk: float
    program: str
    runs: list[Run]

    @property
    def seconds(self) -> float:
        return median(run.seconds for run in self.runs)

    @property
    def peak_bytes(self) -> int:
        return max(run.peak_bytes for run in self.runs)


def anonymous_bytes(pid: int) -> int:
    """Return RssAnon + RssShmem of a process; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return sum(int(fields.get(key, "0 kB").split()[0]) << 10 for key in ("RssAnon", "RssShmem"))


def tree(pid: int) -> list[int]:
    """Return a process and its descendants; nothing if it is gone."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


class MemoryWatch:
    """Samples the memory of a process tree, from its making until `stop`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        """End the sampling; return the peak."""
        self._ended.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        sample, pids = 0, [self._pid]
        while not self._ended.wait(_SAMPLE_EVERY):
            if sample % _CHILDREN_EVERY == 0:
                pids = tree(self._pid)
            self._peak = max(self._peak, sum(map(anonymous_bytes, pids)))
            sample += 1


def run(command: Sequence[str]) -> Run:
    """Run a command to its end; stop the benchmark, showing what it said, if it fails."""
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        watch = MemoryWatch(process.pid)
        code = process.wait()
        seconds = time.perf_counter() - start
        peak = watch.stop()
        if code != 0:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {code}:\n{said.read()}")
    return Run(seconds, peak)


def merge(command: Sequence[str], out: Path) -> Run:
    """Run a merge that writes `out`, which is then deleted."""
    os.sync()
    result = run(command)
    shutil.rmtree(out)
    return result


def plain_copy(inputs: Sequence[Path], output_bytes: int, out: Path) -> Copy:
    """Read the inputs and write `output_bytes` bytes, in large pieces, on one thread."""
    piece = bytearray(os.urandom(1 << 20) * (_PIECE >> 20))
    os.sync()
    start = time.perf_counter()
    for file in inputs:
        descriptor, at = os.open(file, os.O_RDONLY), 0
        while count := os.preadv(descriptor, [piece], at):
            at += count
        os.close(descriptor)
    read = time.perf_counter()
    descriptor, at = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 0
    view = memoryview(piece)
    while at < output_bytes:
        at += os.pwrite(descriptor, view[: output_bytes - at], at)
    written = time.perf_counter()
    os.fsync(descriptor)
    synced = time.perf_counter()
    os.close(descriptor)
    out.unlink()
    return Copy(read - start, written - read, synced - written)


def weight_files(models: Siblings) -> list[Path]:
    """Return the files with the weights, the base's first; the output will be as large as that."""
    return [path / "model.safetensors" for path in (models.base, *models.targets)]


def measure(
    models: Siblings,
    work: Path,
    select_topk: float,
    mergekit: str | None,
    runs: int,
    peer_runs: int,
) -> tuple[list[Figure], list[Copy]]:
    """Take turns: a plain copy, ours, and for the first `peer_runs` turns mergekit-yaml."""
    config = write_config(work / "merge.yaml", models.base, models.targets, select_topk)
    inputs = weight_files(models)
    out = work / "out"
    ours = [sys.executable, "-m", "fuseo1_kernels.merge", str(config), str(out)]
    taken: dict[str, list[Run]] = {"ours": []}
    copies = []
    for turn in range(runs):
        copies.append(plain_copy(inputs, inputs[0].stat().st_size, work / "copy"))
        taken["ours"].append(merge(ours, out))
        if mergekit is not None and turn < peer_runs:
            peer = merge([mergekit, str(config), str(out)], out)
            taken.setdefault("mergekit-yaml", []).append(peer)
    return [Figure(select_topk, program, done) for program, done in taken.items()], copies


def merges_table(figures: Sequence[Figure], copy_seconds: float) -> str:
    rows = []
    for f in figures:
        peers = [
            p.seconds
            for p in figures
            if p.select_topk == f.select_topk and p.program == "mergekit-yaml" and p is not f
        ]
        rows.append(
            [
                f"{f.select_topk:g}",
                f.program,
                str(len(f.runs)),
                f"{f.seconds:.2f}",
                f"{f.seconds / copy_seconds:.2f}x",
                f"{peers[0] / f.seconds:.1f}x" if peers else "",
                f"{f.peak_bytes / 1e6:.0f}",
            ]
        )
    header = ["select_topk", "program", "runs", "seconds", "of the copy's time"]
    return table([*header, "over mergekit", "peak MB, not file-backed"], rows)


def copies_table(copies: Sequence[Copy], read_bytes: int, written_bytes: int) -> str:
    read = median(c.read for c in copies)
    write = median(c.write for c in copies)
    sync = median(c.sync for c in copies)
    rows = [
        ["read every input byte", f"{read_bytes / 1e9:.2f}", f"{read:.2f}"],
        ["write every output byte", f"{written_bytes / 1e9:.2f}", f"{write:.2f}"],
        ["fsync", "", f"{sync:.2f}"],
        ["in all", "", f"{read + write + sync:.2f}"],
    ]
    return table(["plain copy, one thread", "GB", "seconds"], rows)


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
    add("--runs", type=int, default=5, help="of ours and of the copy (default 5)")
    add("--peer-runs", type=int, default=1, help="of mergekit-yaml, at most --runs (default 1)")
    add("--models", type=Path, metavar="DIR", help="made before by checkpoints.py DIR --size ...")
    options = arguments.parse_args()
    size = options.size or ("tiny" if options.quick else "0.5B")
    mergekit = None if options.no_peer else find_mergekit()

    described = describe()
    _WORK.mkdir(exist_ok=True)
    figures: list[Figure] = []
    copies: list[Copy] = []
    with tempfile.TemporaryDirectory(dir=_WORK, prefix="whole-merge-") as folder:
        work = Path(folder)
        models = (
            siblings_in(options.models, TARGETS)
            if options.models
            else make_siblings(work / "models", size, TARGETS)
        )
        for select_topk in SELECT_TOPK:
            more, copied = measure(
                models, work, select_topk, mergekit, options.runs, options.peer_runs
            )
            figures += more
            copies += copied
        help_command = [sys.executable, "-m", "fuseo1_kernels.merge", "--help"]
        help_seconds = median(run(help_command).seconds for _ in range(options.runs))
        read_bytes = sum(file.stat().st_size for file in weight_files(models))
        written_bytes = weight_files(models)[0].stat().st_size

    copy_seconds = median(c.read + c.write + c.sync for c in copies)
    parameters = sum(math.prod(shape) for shape in SIZES[size].shapes().values())
    sections = [
        merges_table(figures, copy_seconds),
        copies_table(copies, read_bytes, written_bytes),
        f"`--help` takes {help_seconds:.2f} s.",
    ]
    title = f"Whole merges: {parameters:,} parameters, four models, bf16, sce"
    data = {
        "merges": [asdict(f) | {"median_seconds": f.seconds} for f in figures],
        "copies": [asdict(c) for c in copies],
        "help_seconds": help_seconds,
    }
    publish(options, described, "whole_merge", title, sections, data)


if __name__ == "__main__":
    main()
