"""Readers that fail, or hang on the disk: they may cost time, but neither bytes nor the end of a merge."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fuseo1_kernels.checkpoint.header import TensorInfo
from fuseo1_kernels.checkpoint.source import Source
from fuseo1_kernels.engine import read_ahead
from fuseo1_kernels.engine.read_ahead import READERS, ReadAhead
from support.interrupted import (
    ARGV,
    CHUNKED,
    TENSORS,
    alone,
    large_family,
    small_family,
    undisturbed,
    unreadable,
)
from support.models import Family
from support.processes import merge_json, run
from support.tuning import FINE, tune

# Any wait that takes longer is a deadlock.
TIMEOUT = 30

real_sendfile = os.sendfile


@pytest.fixture(autouse=True)
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every input is one that readers bring."""
    monkeypatch.setattr(Source, "is_cached", lambda self, info: False)


# --- the result --------------------------------------------------------------------------


def refusing(number: int) -> Callable[..., int]:
    def sendfile(*_: int) -> int:
        raise OSError(number, os.strerror(number))

    return sendfile


def nth_fails() -> Callable[..., int]:
    """Every third call fails: readers go on with what is next."""
    calls: list[int] = []

    def sendfile(out: int, fd: int, offset: int, count: int) -> int:
        calls.append(offset)
        if len(calls) % 3 == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_sendfile(out, fd, offset, count)

    return sendfile


SENDFILES: dict[str, Callable[[], Callable[..., int]]] = {
    "a disk that fails": lambda: refusing(errno.EIO),
    "a file system that cannot send": lambda: refusing(errno.EINVAL),
    "a disk that fails at times": nth_fails,
    "files that are empty all at once": lambda: lambda *_: 0,
    "a few bytes at a time": lambda: lambda out, fd, at, n: real_sendfile(out, fd, at, min(n, 77)),
}


@pytest.mark.parametrize("how", SENDFILES)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_reader_that_fails_does_no_harm(
    how: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(monkeypatch, batch=1)
    family = small_family(tmp_path)
    expected = undisturbed(family, *ARGV)
    sendfile = SENDFILES[how]()
    sent: list[str] = []

    def noted(out: int, fd: int, offset: int, count: int) -> int:
        sent.append(os.readlink(f"/proc/self/fd/{fd}"))
        return sendfile(out, fd, offset, count)

    monkeypatch.setattr(os, "sendfile", noted)
    argv = (family.config, family.out, *ARGV, "--threads", threads)
    assert merge_json(*argv)["resumed"] == 0
    assert alone(family.out) == expected
    models = [family.base, family.target(1), family.target(2)]
    assert set(sent) == {str(f) for model in models for f in model.glob("*.safetensors")}
    assert len(sent) >= 3 * TENSORS


def test_a_reader_that_fails_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker cannot read what the reader could not read, and reports the error."""
    family = small_family(tmp_path)
    file = next(family.target(1).glob("*-00001-of-*.safetensors"))
    monkeypatch.setattr(os, "sendfile", refusing(errno.EIO))
    with unreadable(file, "model.b.weight"):
        failed = run(family.config, family.out, *ARGV)
    assert failed.code == 1
    assert f"{file}: reading tensor 'model.b.weight' failed (Input/output error)" in failed.err
    assert not family.out.parent.exists()


# --- the end -----------------------------------------------------------------------------


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Family:
    """Merged tensor by tensor, the large `w` first."""
    tune(monkeypatch, **FINE)
    return large_family(tmp_path)


def w_fails(family: Family, *argv: object) -> None:
    """A merge in which `w` cannot be read ends, and says why."""
    file = family.target(2) / "model.safetensors"
    with unreadable(file, "model.w.weight"):
        failed = run(family.config, family.out, *argv)
    assert failed.code == 1 and failed.err.count("error: ") == 1
    assert f"{file}: reading tensor 'model.w.weight' failed (Input/output error)" in failed.err
    assert not family.out.parent.exists()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("fuseo1")]


@pytest.mark.parametrize(("threads", "memory"), [(1, "13MiB"), (2, "200MiB")])
def test_a_merge_that_fails_awaits_no_more_than_a_readers_step(
    threads: int, memory: str, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader hangs in the second tensor, and with two workers one of them waits for it, when `w` fails."""
    tune(monkeypatch, step=4096)
    hangs, closed = threading.Event(), threading.Event()
    late: list[int] = []
    place, close = Source.place, ReadAhead.close

    def sendfile(out: int, fd: int, offset: int, count: int) -> int:
        if closed.is_set():
            late.append(offset)
        if offset < begin:
            hangs.set()
            assert closed.wait(TIMEOUT)
        return real_sendfile(out, fd, offset, count)

    def waiting_place(self: Source, info: TensorInfo) -> AbstractContextManager[tuple[int, int]]:
        if info.name == "model.w.weight":
            assert hangs.wait(TIMEOUT)
        return place(self, info)

    def noted_close(self: ReadAhead) -> None:
        close(self)
        closed.set()

    file = family.base / "model.safetensors"
    # All other tensors lie before it, and are brought after it.
    begin = file.stat().st_size - family.states[0]["model.w.weight"].nbytes
    monkeypatch.setattr(os, "sendfile", sendfile)
    monkeypatch.setattr(Source, "place", waiting_place)
    monkeypatch.setattr(ReadAhead, "close", noted_close)
    w_fails(family, *CHUNKED, "--threads", threads, "--max-memory", memory)
    assert hangs.is_set() and closed.is_set()
    # One reader hung; the other may have been on its way into a last step.
    assert len(late) < READERS


def test_a_merge_that_fails_wakes_readers_that_wait_for_room(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = sum(state["model.w.weight"].nbytes for state in family.states)
    waits, real = threading.Event(), ReadAhead._has_room
    place = Source.place

    def has_room(self: ReadAhead, unit: read_ahead.UnitReads) -> bool:
        found = real(self, unit)
        if not found:
            waits.set()
        return found

    def waiting_place(self: Source, info: TensorInfo) -> AbstractContextManager[tuple[int, int]]:
        assert waits.wait(TIMEOUT)
        return place(self, info)

    tune(monkeypatch, page_cache=w)
    monkeypatch.setattr(ReadAhead, "_has_room", has_room)
    monkeypatch.setattr(Source, "place", waiting_place)
    w_fails(family, *CHUNKED)
