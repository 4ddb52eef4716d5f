"""Merges in processes of their own, to be killed and sabotaged: forked from one that has everything imported.

Run as a script this module is the process that forks. `sabotage` has what may be done in a child before the
command line runs: functions named in the request, each with its arguments.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.processes import environment

IMPORTED = (
    "support.sabotage",
    "fuseo1_kernels.merge",
    "fuseo1_kernels.engine.merge",
    "fuseo1_kernels.backends.cpu",
)

#: A sabotage's name and arguments.
Sabotage = tuple[Any, ...]


# --- the tests' side ---------------------------------------------------------------------


class Child:
    """A merge that was forked; `log` names its state-changing calls, if they were counted."""

    def __init__(self, forks: Forks, pid: int, files: Path) -> None:
        self._forks = forks
        self._files = files
        self.pid = pid

    def wait(self) -> Ended:
        """Wait for the merge to end, and return its exit code and its output."""
        code = self._forks.ask(wait=self.pid)
        out, err, log = (
            self._files.with_suffix(f".{name}").read_text() for name in ("out", "err", "log")
        )
        return Ended(code, out, err, log.splitlines())

    def signal(self, number: int) -> None:
        """Send a signal: its process is there until `wait`, dead or alive."""
        os.kill(self.pid, number)


class Ended:
    """A merge that ended: its exit code (the negative signal, if one killed it) and what it said."""

    def __init__(self, code: int, out: str, err: str, calls: Sequence[str]) -> None:
        self.code, self.out, self.err, self.calls = code, out, err, calls

    def __repr__(self) -> str:
        return f"exit code {self.code}, last call {self.calls[-1:]}\n{self.out}{self.err}"

    @property
    def result(self) -> dict[str, Any]:
        """Return the object that --json printed."""
        said: dict[str, Any] = json.loads(self.out)
        return said


class Forks:
    """The process that forks. `files` is a directory for what the children print."""

    def __init__(self, files: Path, *imported: str, env: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.forked", *IMPORTED, *imported],
            env=environment(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._files = files
        self._number = 0

    def ask(self, **request: Any) -> int:
        """Send a request, return the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        with _in_time():
            return int(self._process.stdout.readline())

    def start(self, *argv: object, sabotage: Sequence[Sabotage] = ()) -> Child:
        """`fuseo1-merge ARGV`, forked."""
        self._number += 1
        files = self._files / str(self._number)
        for name in ("out", "err", "log"):  # a child may die before it opens them
            files.with_suffix(f".{name}").touch()
        words = [str(arg) for arg in argv]
        pid = self.ask(argv=words, sabotage=list(sabotage), files=str(files))
        return Child(self, pid, files)

    def run(self, *argv: object, sabotage: Sequence[Sabotage] = ()) -> Ended:
        """`fuseo1-merge ARGV`, to its end."""
        return self.start(*argv, sabotage=sabotage).wait()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def wait_for(fifo: Path) -> None:
    """Return when a child has come to the point where it opens `fifo`."""
    with _in_time():
        fifo.read_bytes()


def let_go(fifo: Path) -> None:
    """Have the child go on that waits at `fifo`."""
    with _in_time():
        fifo.write_bytes(b"")


@contextmanager
def _in_time() -> Iterator[None]:
    """Fail rather than wait for ever, when a child does not come there."""

    def late(*_: object) -> None:
        raise TimeoutError("the child hangs, or ended before")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def forking(files: Path, *imported: str, env: Mapping[str, str] | None = None) -> Iterator[Forks]:
    """A process that forks, which has `imported` loaded beside the engine, and `env` in its environment."""
    forks = Forks(files, *imported, env=env)
    try:
        yield forks
    finally:
        forks.close()


# --- the process that forks --------------------------------------------------------------


def _serve() -> None:
    # A script's shell has what it starts in the background, such as the tests, and its children ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in sys.argv[1:]:
        importlib.import_module(name)
    children: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            children.remove(request["wait"])
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            _merge(**request)
        children.add(pid)
        print(pid, flush=True)
    for pid in children:  # which a test that failed has left
        os.kill(pid, signal.SIGKILL)


def _merge(argv: list[str], sabotage: list[list[Any]], files: str) -> None:
    from fuseo1_kernels.cli import merge
    from support import sabotage as saboteurs
    from support import tuning

    saboteurs.log_file = f"{files}.log"
    for number, name in ((0, os.devnull), (1, f"{files}.out"), (2, f"{files}.err")):
        fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(fd, number)
        os.close(fd)
    for name, *args in sabotage:
        getattr(saboteurs, name)(*args)
    code = 1
    try:
        code = merge.main(argv, tuning=tuning.current())
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking a whole interpreter down costs more than the merge.
    os._exit(code)


if __name__ == "__main__":
    _serve()
