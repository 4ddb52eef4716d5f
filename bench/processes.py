"""Programs run to their end: how long they took and how much memory they held."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

#: The merge's command line; from the repository's root it runs without being installed.
MERGE = (sys.executable, "-m", "fuseo1_kernels.merge")

#: Often enough to see what a program holds, seldom enough not to slow it down.
SELDOM = 0.02
#: For runs whose memory is what matters: a few per cent of one core.
OFTEN = 0.002
# Looking for new child processes reads all of /proc.
_CHILDREN_EVERY = 0.2


@dataclass(frozen=True)
class Run:
    """Seconds, and the most memory that a program and its children held at once, in bytes.

    `held` is what no file backs, RssAnon + RssShmem, and can only be sampled: it is missed if it stood
    for less than the interval. `resident` is the kernel's own high-water mark (VmHWM), which misses
    nothing but counts the pages of files as well: the truth lies between the two.
    """

    seconds: float
    held: int
    resident: int


# As an installed package is: compiled once, whatever the shell of whoever works on this says.
_USUAL = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def run(
    command: Sequence[str],
    *,
    every: float = SELDOM,
    environment: Mapping[str, str] | None = None,
    told: list[str] | None = None,
) -> Run:
    """Run a command to its end; stop the benchmark, showing what it said, if it fails.

    What it said, all in one, is appended to `told`.
    """
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**_USUAL, **(environment or {})},
        )
        watch = _MemoryWatch(process.pid, every)
        code = process.wait()
        seconds = time.perf_counter() - start
        held, resident = watch.stop()
        said.seek(0)
        words = said.read()
        if code != 0:
            raise SystemExit(f"{' '.join(command)} ended with {code}:\n{words}")
    if told is not None:
        told.append(words)
    return Run(seconds, held, resident)


class _MemoryWatch:
    """Samples the memory of a process tree, from its making until `stop`."""

    def __init__(self, pid: int, every: float) -> None:
        self._pid = pid
        self._every = every
        self._held = 0
        self._high_water: dict[int, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> tuple[int, int]:
        """End the sampling; return the peaks of what no file backs and of all resident memory."""
        self._ended.set()
        self._thread.join()
        return self._held, sum(self._high_water.values())

    def _watch(self) -> None:
        pids, looked = [self._pid], time.monotonic()
        while not self._ended.wait(self._every):
            if time.monotonic() - looked > _CHILDREN_EVERY:
                pids, looked = _tree(self._pid), time.monotonic()
            held = 0
            for pid in pids:
                status = _status(pid)
                held += status["RssAnon"] + status["RssShmem"]
                self._high_water[pid] = max(self._high_water.get(pid, 0), status["VmHWM"])
            self._held = max(self._held, held)


def _status(pid: int) -> dict[str, int]:
    """Return three sizes, in bytes, of a process's memory; zeros if it is gone."""
    sizes = {"RssAnon": 0, "RssShmem": 0, "VmHWM": 0}
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return sizes
    for line in lines:
        key, _, value = line.partition(":")
        if key in sizes:
            sizes[key] = int(value.split()[0]) << 10
    return sizes


def _tree(pid: int) -> list[int]:
    """Return a process and its descendants; nothing if it is gone."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []
