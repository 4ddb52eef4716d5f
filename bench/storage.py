"""The rate of storage by each way of reading and writing: the mechanisms behind the engine's choices.

    python bench/storage.py [--quick] [--runs 3] [--pause 10] [--results DIR]

Four input files are read in the engine's order: 8 MiB of the first, of the second, ..., then the next
8 MiB of each; threads take the pieces in turn. Reads are cold (files dropped from the page cache just
before), cold after a pause (see page_cache.make_cold: the machine may have given its free memory away by
then), and warm. One output file is written in the same way. All ways take turns. Needs 3.2 GB of disk.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import page_cache
from machine import describe
from plain_copy import buffer
from report import WORK, median, parser, publish, table
from storage_ways import READS, UNIT, WRITES, Reads, Writes

MODELS = 4
THREADS = (1, 2, 4)
#: What a kernel or a file system says that does not know a way.
_UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass
class Figure:
    """One way with some threads: seconds of every run; none if it is not supported here."""

    way: str
    cache: str
    threads: int
    size: int
    seconds: list[float] = field(default_factory=list)
    #: Of the writes, by step: allocate, write, sync.
    steps: list[tuple[float, ...]] = field(default_factory=list)
    #: Bytes that the page cache held afterwards.
    cached: int | None = None

    @property
    def rate(self) -> str:
        if not self.seconds:
            return "unsupported"
        return f"{self.size / median(self.seconds) / 1e9:.2f}"


def shared_out(count: int, threads: int, work: Callable[[int, memoryview], None]) -> float:
    """Call `work` with 0 ... `count` - 1 and a thread's own 8 MiB; return the seconds in all.

    The first error ends it and is raised.
    """
    numbers = iter(range(count))
    lock = threading.Lock()
    errors: list[OSError] = []
    buffers = [memoryview(buffer(UNIT)) for _ in range(threads)]

    def go(piece: memoryview) -> None:
        while not errors:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                work(number, piece)
            except OSError as error:
                errors.append(error)

    workers = [threading.Thread(target=go, args=(piece,)) for piece in buffers]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - start
    if errors:
        raise errors[0]
    return seconds


def read_once(figure: Figure, way: type[Reads], files: Sequence[Path], pause: float) -> None:
    """Read all files once and note it down; `pause` follows dropping the files where it is wanted."""
    if figure.cache == "warm":
        page_cache.warm(files)
    else:
        page_cache.make_cold(files, pause if figure.cache == "paused" else 0.0)
    reads = None
    try:
        reads = way(files)
        figure.seconds.append(shared_out(reads.units, figure.threads, reads.read))
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        if reads is not None:
            reads.close()
    if figure.cache == "cold" and figure.seconds:
        figure.cached = page_cache.cached_bytes(files)


def write_once(figure: Figure, way: type[Writes], file: Path) -> None:
    """Write `file` once, note it down, and delete the file."""
    os.sync()
    start = time.perf_counter()
    writes = None
    try:
        writes = way(file, figure.size)
        allocated = time.perf_counter() - start
        written = shared_out(writes.units, figure.threads, writes.write)
        before = time.perf_counter()
        os.fsync(writes.descriptor)
        figure.steps.append((allocated, written, time.perf_counter() - before))
        figure.seconds.append(sum(figure.steps[-1]))
        figure.cached = page_cache.cached_bytes([file])
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        if writes is not None:
            writes.close()
        file.unlink(missing_ok=True)


def measure_reads(files: Sequence[Path], runs: int, pause: float) -> list[Figure]:
    """Let all ways of reading take turns."""
    size = sum(file.stat().st_size for file in files)
    ways = [
        (Figure(way.name, cache, threads, size), way)
        for cache, several in (("cold", THREADS), ("paused", (1,)), ("warm", THREADS))
        for way in READS
        for threads in several
    ]
    for number in range(runs):
        for figure, way in ways:
            if figure.cache != "paused" or number == 0:  # it takes long
                read_once(figure, way, files, pause)
    return [figure for figure, _ in ways]


def measure_writes(file: Path, size: int, runs: int) -> list[Figure]:
    """Let all ways of writing take turns."""
    ways = [(Figure(way.name, "", threads, size), way) for way in WRITES for threads in THREADS[:2]]
    for _ in range(runs):
        for figure, way in ways:
            write_once(figure, way, file)
    return [figure for figure, _ in ways]


def cold_table(figures: Sequence[Figure], pause: float) -> str:
    rows = []
    for way in READS:
        cold = [f for f in figures if (f.way, f.cache) == (way.name, "cold")]
        paused = [f for f in figures if (f.way, f.cache) == (way.name, "paused")]
        rows.append([way.name, *(f.rate for f in [*cold, *paused]), _share(cold[0])])
    header = ["cold reads, GB/s by threads", *map(str, THREADS), f"1, {pause:g} s later"]
    return table([*header, "left in the page cache"], rows)


def warm_table(figures: Sequence[Figure]) -> str:
    rows = []
    for way in READS:
        warm = [f for f in figures if (f.way, f.cache) == (way.name, "warm")]
        rows.append([way.name, *(f.rate for f in warm)])
    return table(["warm reads, GB/s by threads", *map(str, THREADS)], rows)


def writes_table(figures: Sequence[Figure]) -> str:
    rows = []
    for f in figures:
        steps = [f"{median(step):.2f}" for step in zip(*f.steps, strict=True)] or [""] * 3
        total = f"{median(f.seconds):.2f}" if f.seconds else ""
        rows.append([f.way, str(f.threads), *steps, total, f.rate, _share(f)])
    header = ["writes", "threads", "seconds: allocate", "write", "fsync", "in all", "GB/s"]
    return table([*header, "left in the page cache"], rows)


def _share(figure: Figure) -> str:
    return "" if figure.cached is None else f"{figure.cached / figure.size:.0%}"


def make_files(folder: Path, size: int) -> list[Path]:
    """Write the inputs: `size` random bytes each."""
    files = [folder / f"model-{i}" for i in range(MODELS)]
    for file in files:
        with file.open("wb") as stream:
            for _ in range(size >> 20):
                stream.write(os.urandom(1 << 20))
    return files


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    add = arguments.add_argument
    add("--runs", type=int, help="of every way (default 3; 1 with --quick)")
    add("--pause", type=float, default=10.0, metavar="S", help="of the reads after one")
    options = arguments.parse_args()
    runs = options.runs or (1 if options.quick else 3)
    pause = 0.1 if options.quick else options.pause
    each, written = (16 << 20, 16 << 20) if options.quick else (512 << 20, 1 << 30)

    described = describe()
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK, prefix="storage-") as folder:
        reads = measure_reads(make_files(Path(folder), each), runs, pause)
        writes = measure_writes(Path(folder) / "out", written, runs)
    sections = [cold_table(reads, pause), warm_table(reads), writes_table(writes)]
    title = (
        f"Storage: {MODELS} files of {each >> 20} MiB read in pieces of 8 MiB,"
        f" one of {written >> 20} MiB written"
    )
    data = [asdict(f) for f in [*reads, *writes]]
    publish(options, described, "storage", title, sections, data)


if __name__ == "__main__":
    main()
