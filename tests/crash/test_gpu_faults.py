"""Merges on GPUs that fail, are interrupted and go on: one message, no thread left, no byte of OUT that is wrong."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels.checkpoint.sink import Sink
from fuseo1_kernels.engine.gpu.context import GpuContext
from fuseo1_kernels.errors import OutputError
from support.fake_gpu import FakeDevice, install
from support.forked import Forks, forking, wait_for
from support.interrupted import CHUNKED, Place, journaled, large_family, partial_of, undisturbed
from support.models import Family, make_family, tuned, weights
from support.processes import done, merge_json, run
from support.sabotage import CHANGES
from support.tuning import FINE, tune

ON_GPU = ("--json", "--quiet", "--threads", "2", "--device", "cuda:0")
SEED = 20261122


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return large_family(tmp_path_factory.mktemp("large"), side=128)


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return large_family(tmp_path, side=128)


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor noted on its own, in copies of which the largest needs many."""
    tune(monkeypatch, slot=64 << 10, **FINE)


def fails(family: Family, *argv: object) -> str:
    """The merge fails with one line, and leaves neither OUT nor a thread."""
    result = run(family.config, family.out, *ON_GPU, *argv)
    assert result.code == 1 and result.out.startswith('{"error": ')
    error, *kept = result.err.splitlines()
    assert error.startswith("fuseo1-merge: error: ") and len(kept) <= 1
    assert not family.out.exists()
    assert partial_of(family.out).exists() == bool(kept) == bool(journaled(family.out))
    assert not [t for t in threading.enumerate() if t.name.startswith("fuseo1")]
    return error


def succeeds(family: Family, *argv: object) -> int:
    """The merge gives the CPU's bytes; how many tensors were there already."""
    resumed: int = merge_json(family.config, family.out, "--threads", "2", *argv)["resumed"]
    done(family.config, family.home / "cpu", "--overwrite", "--quiet")
    assert weights(family.out) == weights(family.home / "cpu")
    return resumed


# --- the GPU -----------------------------------------------------------------------------


@pytest.mark.parametrize("lost_at", [1, 2, 30, 110, 118])
def test_a_lost_device(lost_at: int, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice()
    device.lost_at = lost_at
    install(monkeypatch, device)
    said = fails(family)
    assert said == "fuseo1-merge: error: cuda:0: CUDA error: unspecified launch failure"
    complete = journaled(family.out)
    install(monkeypatch, FakeDevice())
    assert succeeds(family, "--cuda") == complete


def test_what_one_processor_began_another_ends(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FakeDevice()
    install(monkeypatch, device)
    write, left = Sink.write, [4]

    def failing(self: Sink, name: str, start: int, view: memoryview) -> None:
        if name != "model.w.weight":
            left[0] -= 1
        if left[0] < 0:
            raise OutputError("the disk is full")
        write(self, name, start, view)

    with monkeypatch.context() as patch:
        patch.setattr(Sink, "write", failing)
        assert "the disk is full" in fails(family)
    assert journaled(family.out) >= 1
    assert succeeds(family) >= 1


def test_what_the_cpu_began(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeDevice())
    write = Sink.write

    def failing(self: Sink, name: str, start: int, view: memoryview) -> None:
        if name == "model.e.weight":
            raise OutputError("the disk is full")
        write(self, name, start, view)

    with monkeypatch.context() as patch:
        patch.setattr(Sink, "write", failing)
        assert run(family.config, family.out, "--threads", "1", "--quiet").code == 1
    complete = journaled(family.out)
    assert complete >= 2
    assert succeeds(family, "--cuda") == complete


def test_too_little_memory_of_the_gpu(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeDevice(free=1 << 20))
    said = fails(family, "--max-gpu-memory", "1GiB")
    assert "cuda:0: out of memory; lower --max-gpu-memory" in said


def test_too_little_memory_to_page_lock(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice()
    device.most_pinned = 1 << 18
    install(monkeypatch, device)
    assert "64 KiB of page-locked memory cannot be had; lower --max-memory" in fails(family)


def test_too_many_threads(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeDevice())
    submit = ThreadPoolExecutor.submit

    def refuse(self: Any, function: Any, *args: Any) -> Any:
        if self._thread_name_prefix == "fuseo1-gpu":
            raise RuntimeError("can't start new thread")
        return submit(self, function, *args)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    assert fails(family).endswith("can't start new thread; lower --threads")


def test_the_second_gpu_is_full(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = install(monkeypatch, FakeDevice(0), FakeDevice(1, free=1 << 20))
    said = fails(family, "--device", "cuda:0,cuda:1", "--max-gpu-memory", "1GiB")
    assert "cuda:1: out of memory" in said
    assert devices[0].closed == 1


# --- the models --------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", ["w", "c"])
@pytest.mark.parametrize("model", [0, 2])
def test_a_tensor_that_cannot_be_read(
    model: int, tensor: str, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, FakeDevice())
    path = (family.target(model) if model else family.base) / "model.safetensors"
    there, read = path.stat(), os.preadv
    place = place_of(path, f"model.{tensor}.weight")

    def failing(fd: int, views: Any, offset: int, *flags: int) -> int:
        if os.path.samestat(os.fstat(fd), there) and offset == place:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(fd, views, offset, *flags)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing)
        said = fails(family)
    assert f"{path}: reading tensor 'model.{tensor}.weight' failed (Input/output error)" in said
    succeeds(family, "--cuda")


def place_of(path: Path, tensor: str) -> int:
    from fuseo1_kernels.checkpoint.header import read_header

    return read_header(path).tensors[tensor].offset


@pytest.mark.parametrize("how", [how for how in CHANGES if how != "is removed"])
def test_a_model_that_changes(how: str, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of the first tensor."""
    install(monkeypatch, FakeDevice())
    path, read, reads = family.target(1) / "model.safetensors", os.preadv, [20]
    lock, there = threading.Lock(), path.stat()

    def changing(fd: int, views: Any, offset: int, *flags: int) -> int:
        with lock:
            if os.path.samestat(os.fstat(fd), there):
                reads[0] -= 1
                if reads[0] == 0:
                    CHANGES[how](path)
        return read(fd, views, offset, *flags)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", changing)
        result = run(family.config, family.out, *ON_GPU)
    began_again = result.code == 0 and "was touched" in result.err + result.out
    # What may have been from another model is merged anew; of one that certainly is another nothing may be merged yet.
    if how in ("is linked", "is rewritten and dated back") or (
        how == "is replaced" and began_again
    ):
        assert began_again
        return
    word = "changed since" if how == "is replaced" else "the file "
    assert result.code == 1 and str(path) in result.err and word in result.err
    assert not family.out.exists()
    assert partial_of(family.out).exists() == bool(journaled(family.out))


# --- interruptions -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forking(tmp_path_factory.mktemp("forks"), "support.fake_gpu") as forks:
        yield forks


@pytest.mark.slow
@pytest.mark.serial
def test_signals_and_kills_at_random_times(forks: Forks, large: Family) -> None:
    print(f"seed {SEED}")
    rng, fifo = random.Random(SEED), large.home / "fifo"
    os.mkfifo(fifo)
    expected = undisturbed(large, *CHUNKED)
    options = (*CHUNKED, "--max-memory", "64MiB", "--device", "cuda:0,cuda:1")
    slow = [("fake_gpus", 2, 0.004), ("announce", str(fifo))]
    place = Place(forks, large, "whole", "new", expected, options)
    child = place.start(*slow)
    wait_for(fifo)
    began = time.monotonic()
    ended = child.wait()
    assert ended.code == 0, ended
    whole = time.monotonic() - began
    codes = []
    for number in range(9):
        place = Place(forks, large, f"random {number}", "new", expected, options)
        child = place.start(*slow)
        wait_for(fifo)
        time.sleep(rng.uniform(0.1, 0.9) * whole)
        sent = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[number % 3]
        began = time.monotonic()
        child.signal(sent)
        ended = child.wait()
        print(f"merge {number}: {sent.name}, exit code {ended.code}")
        assert "Traceback" not in ended.err, ended
        codes.append(ended.code)
        if ended.code in (130, 143):
            assert ended.err.startswith("fuseo1-merge: interrupted")
            assert place.out.parent.exists() == bool(journaled(place.out))
        # The CPU keeps the complete tensors and merges the rest.
        complete = 0 if ended.code == 0 else journaled(place.out)
        again = merge_json(large.config, place.out, "--threads", "2")
        assert ended.code == 0 or again["resumed"] == complete
        assert weights(place.out) == {
            name: data for name, data in expected.items() if name.startswith("model") and data
        }
    assert codes.count(130) + codes.count(143) >= 4 and codes.count(-9) == 3


@pytest.mark.serial
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_merge_stops_at_once(number: int, forks: Forks, large: Family, tmp_path: Path) -> None:
    """In the middle of a tensor whose reading takes seconds."""
    os.mkfifo(tmp_path / "fifo")
    place = Place(forks, large, f"stopped {number}", "new", {}, (*ON_GPU,))
    child = place.start(("fake_gpus", 1, 0.2), ("announce", str(tmp_path / "fifo")))
    wait_for(tmp_path / "fifo")
    time.sleep(0.4)
    began = time.monotonic()
    child.signal(number)
    ended = child.wait()
    assert ended.code == 128 + number, ended
    assert time.monotonic() - began < 2
    # Small tensors of others may be complete.
    assert not place.out.exists()
    assert place.out.parent.exists() == bool(journaled(place.out))


@pytest.mark.serial
def test_a_merge_of_small_tensors_stops_at_once(forks: Forks, tmp_path: Path) -> None:
    """In the middle of a copy to the GPU that is put together of many reads."""
    os.mkfifo(tmp_path / "fifo")
    base = {f"w{i}": torch.full((16,), i / 8) for i in range(80)}
    family = make_family(tmp_path, [base, tuned(base, 1), tuned(base, 2)])
    slow = [("fake_gpus", 1, 0.2), ("announce", str(tmp_path / "fifo"))]
    argv = (family.config, family.out, "--quiet", "--cuda", "--max-gpu-memory", "100MiB")
    child = forks.start(*argv, sabotage=slow)
    wait_for(tmp_path / "fifo")
    time.sleep(0.4)
    began = time.monotonic()
    child.signal(signal.SIGINT)
    assert child.wait().code == 130
    assert time.monotonic() - began < 2
    assert not family.out.parent.exists()


def test_workers_have_ended_when_files_are_closed(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of a closed file may be another's by the time a reader uses it."""
    device = FakeDevice()
    device.lost_at = 40
    install(monkeypatch, device)
    ended = []
    close = GpuContext.close

    def closed(self: GpuContext) -> None:
        close(self)
        ended.append([t for t in threading.enumerate() if t.name.startswith("fuseo1")])

    monkeypatch.setattr(GpuContext, "close", closed)
    sink_close, order = Sink.close, list[int]()

    def noted(self: Sink) -> None:
        order.append(len(ended))
        sink_close(self)

    monkeypatch.setattr(Sink, "close", noted)
    fails(family)
    assert ended == [[]] and order[0] == 1
