"""The child that `forked` starts calls these functions, by name, before the command line; they disturb its merge."""

from __future__ import annotations

import builtins
import ctypes
import errno
import fcntl
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from support import tuning

#: `count` writes to this file.
log_file = ""


def count(nth: int = 0, action: str = "kill", number: int = signal.SIGKILL, fifo: str = "") -> None:
    """Log every call that changes the state on disk; before the `nth` (from 1) do what `action` says.

    "kill": send oneself the signal `number`. "tear": the same, when half of a write is done. "pause": open
    `fifo` for writing, which tells its reader, and then for reading, which waits for a writer.
    """
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    write, calls = os.write, 0

    def counted(name: str, real: Callable[..., Any], counts: Callable[..., bool]) -> Any:
        def call(*args: Any, **keywords: Any) -> Any:
            nonlocal calls
            if not counts(*args, **keywords):
                return real(*args, **keywords)
            calls += 1
            write(log, f"{name} {_subject(args, keywords)}\n".encode())
            if calls == nth:
                if action == "pause":
                    for flags in (os.O_WRONLY, os.O_RDONLY):
                        os.close(os.open(fifo, flags))
                    return real(*args, **keywords)
                if action == "tear" and name in ("write", "pwrite", "pwritev"):
                    real(args[0], _half(args[1]), *args[2:])
                os.kill(os.getpid(), number)
            return real(*args, **keywords)

        return call

    # Not every file system knows the flag with which the engine writes: without it, all count alike.
    pwritev = os.pwritev
    _patch(os, "pwritev", lambda fd, views, offset, _flags: pwritev(fd, views, offset))
    for module, name, counts in _changing_calls():
        setattr(module, name, counted(name, getattr(module, name), counts))


def _half(data: Any) -> Any:
    return [data[0][: data[0].nbytes // 2]] if isinstance(data, list) else data[: len(data) // 2]


def _subject(args: Sequence[Any], keywords: dict[str, Any]) -> str:
    """The file that a call is about, whether by number, by name, or by name in an open directory."""
    if isinstance(args[0], int):
        return os.readlink(f"/proc/self/fd/{args[0]}")
    name = os.fspath(args[0])
    directory = keywords.get("dir_fd", keywords.get("src_dir_fd"))
    return name if directory is None else f"{os.readlink(f'/proc/self/fd/{directory}')}/{name}"


def _changing_calls() -> list[tuple[Any, str, Callable[..., bool]]]:
    from fuseo1_kernels.checkpoint import partial

    def always(*_args: Any, **_keywords: Any) -> bool:
        return True

    def creates(_file: Any, flags: int, *_args: Any, **_keywords: Any) -> bool:
        return bool(flags & os.O_CREAT)

    def writes(_file: Any, mode: str = "r", *_args: Any, **_keywords: Any) -> bool:
        return mode[0] != "r"

    def is_file(fd: int, *_args: Any) -> bool:
        return fd > 2

    names = ["mkdir", "ftruncate", "posix_fallocate", "pwritev", "pwrite", "fsync", "fdatasync"]
    names += ["rename", "replace", "unlink", "rmdir"]
    return [
        *((os, name, always) for name in names),
        (os, "open", creates),
        (os, "write", is_file),
        (builtins, "open", writes),
        (io, "open", writes),
        (fcntl, "flock", always),
        (partial, "_rename_exchange", always),
    ]


def fault(directory: str, nth: int, number: int) -> None:
    """Let the `nth` call (from 1; 0: none) of the C library about a file below `directory` fail (`faults.c`).

    `number` is its errno, or -1: a read or write moves half of what it could. The calls are logged.
    """
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    ctypes.CDLL(None).fault_arm(os.fsencode(directory), ctypes.c_long(nth), number, log)


def signals_at(share: float, numbers: Sequence[int], calls: int) -> None:
    """Send these signals to oneself where the main thread makes the call of Python code at this share of `calls`.

    They are counted while signals are answered. With `calls` = 0 their number is written to the log.
    """
    made, answered = 0, False

    def trace(frame: FrameType, event: str, _arg: Any) -> None:
        nonlocal made, answered
        if event == "return" and frame.f_code.co_filename.endswith("interruption.py"):
            answered = {"_install": True, "_run": False}.get(frame.f_code.co_name, answered)
        if event == "call" and answered:
            made += 1
            if made == 1 + int(share * calls):
                for number in numbers:
                    os.kill(os.getpid(), number)

    if not calls:
        exits = os._exit

        def leave(code: int) -> None:
            sys.setprofile(None)
            Path(log_file).write_text(f"{made}\n")
            exits(code)

        _patch(os, "_exit", leave)
    sys.setprofile(trace)


def kill_after(tensors: int) -> None:
    """Die when that many tensors are in the journal, which has them one by one."""
    from fuseo1_kernels.checkpoint.journal import Journal

    finely()
    real, calls = Journal.add, 0

    def add(self: Journal, records: Any) -> None:
        nonlocal calls
        real(self, records)
        calls += 1
        if calls == tensors:
            os.kill(os.getpid(), signal.SIGKILL)

    _patch(Journal, "add", add)


def announce(fifo: str) -> None:
    """Tell the reader of `fifo` that the merge begins, and signals are answered."""
    from fuseo1_kernels.config import load

    _first(load, "as_config", fifo)


def announce_end(fifo: str) -> None:
    """Tell the reader of `fifo` that the workers were asked to stop, and are waited for."""
    from concurrent.futures import ThreadPoolExecutor

    _first(ThreadPoolExecutor, "shutdown", fifo)


def _first(holder: Any, name: str, fifo: str) -> None:
    real = getattr(holder, name)

    def call(*args: Any, **keywords: Any) -> Any:
        os.close(os.open(fifo, os.O_WRONLY))
        return real(*args, **keywords)

    setattr(holder, name, call)


def finely() -> None:
    """Have every tensor of a small model noted in the journal on its own, and a larger one merged in chunks."""
    tuning.change(**tuning.FINE)


def no_exchange() -> None:
    """A file system on which two directories cannot be exchanged."""
    from fuseo1_kernels.checkpoint import partial

    def refuse(_name: str, _path: Path, *, src_dir_fd: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    _patch(partial, "_rename_exchange", refuse)


def no_sync() -> None:
    """Save the time that a disk takes: a kill, unlike a power cut, loses nothing that was written."""
    _patch(os, "fsync", lambda _fd: None)


def slowly(rate: float, latency: float) -> None:
    """A slow disk (bytes a second, seconds a call): spreads a small merge over a time in which it is hit.

    Nothing is in the page cache, and the kernels' reads from there are as slow as the readers' from the disk.
    """
    from fuseo1_kernels.backends.cpu import CpuBackend, CpuSurveyor
    from fuseo1_kernels.checkpoint.source import Source

    def wait(nbytes: int) -> None:
        time.sleep(latency + nbytes / rate)

    def sendfile(out: int, fd: int, offset: int, count: int) -> int:
        count = min(count, 1 << 20)
        wait(count)
        return real(out, fd, offset, count)

    def survey(_surveyor: Any, files: Sequence[Any], _start: int, count: int, *_: Any) -> None:
        wait(count * sum(f.dtype.size for f in files))

    def fuse(_backend: Any, files: Sequence[Any], _params: Any, out: Any, *_: Any) -> None:
        wait(out.numel * sum(f.dtype.size for f in files))

    real = os.sendfile
    _patch(os, "sendfile", sendfile)
    _patch(Source, "is_cached", lambda self, info: False)
    _around(CpuSurveyor, "update_files", survey)
    _around(CpuBackend, "fuse_files", fuse)
    _around(os, "fsync", lambda _fd: time.sleep(latency))


def fake_gpus(number: int, latency: float = 0.0) -> None:
    """GPUs that are none (`fake_gpu`), fed in small pieces by a disk that takes `latency` seconds for each."""
    import pytest

    from fuseo1_kernels.checkpoint.source import Source
    from support.fake_gpu import FakeDevice, install

    install(pytest.MonkeyPatch(), *(FakeDevice(i) for i in range(number)))
    tuning.change(slot=64 << 10)
    _around(Source, "read_into", lambda *_: time.sleep(latency))


def change(file: str, how: str, at: int) -> None:
    """Do something to the model file `file` just before the reference backend's `at`-th read (from 1) of it."""
    from fuseo1_kernels.checkpoint.source import Source

    path, reads = Path(file), 0
    # So that readers have their part in it.
    _patch(Source, "is_cached", lambda self, info: False)

    def tamper(fd: int, *_: Any) -> None:
        nonlocal reads
        if not os.path.samestat(os.fstat(fd), before):
            return
        reads += 1
        if reads == at:
            CHANGES[how](path)

    before = path.stat()
    _around(os, "preadv", tamper)


def change_early(file: str, how: str) -> None:
    """Do something to the model file `file` before any tensor is read, when all headers were."""
    from fuseo1_kernels.engine import merge

    real: Any = vars(merge)["fingerprint"]

    def fingerprint(*args: Any) -> Any:
        CHANGES[how](Path(file))
        return real(*args)

    _patch(merge, "fingerprint", fingerprint)


def _shrink(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _grow(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"\0")


def _rewrite(file: Path) -> None:
    """Other bytes in the same place, and as many."""
    content = bytearray(file.read_bytes())
    with file.open("r+b") as stream:
        for i in range(len(content) // 2, len(content) // 2 + 1000):
            content[i] ^= 1
        stream.write(content)


def _rewrite_and_date_back(file: Path) -> None:
    """As `rsync --times --inplace` and `cp --preserve` do."""
    before = file.stat()
    _rewrite(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace(file: Path) -> None:
    """Another file by that name, as downloads and `mv` make it."""
    other = file.with_suffix(".new")
    other.write_bytes(file.read_bytes())
    _rewrite(other)
    os.replace(other, file)


def _remove(file: Path) -> None:
    file.unlink()


CHANGES = {
    "shrinks": _shrink,
    "grows": _grow,
    "is rewritten": _rewrite,
    "is rewritten and dated back": _rewrite_and_date_back,
    "is linked": lambda file: os.link(file, file.parents[1] / "linked"),
    "is replaced": _replace,
    "is removed": _remove,
}


def _patch(holder: Any, name: str, value: Any) -> None:
    setattr(holder, name, value)


def _around(holder: Any, name: str, before: Callable[..., None]) -> None:
    real = getattr(holder, name)

    def call(*args: Any) -> Any:
        before(*args)
        return real(*args)

    setattr(holder, name, call)
