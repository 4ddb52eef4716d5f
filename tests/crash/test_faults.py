"""Disks that fail, fill up or cannot be written, and models that change while they are read."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels.backends.cpu import CpuSurveyor
from fuseo1_kernels.checkpoint.source import Source
from support.checkpoint_files import tree
from support.forked import Forks, forking
from support.interrupted import (
    ARGV,
    CHUNKED,
    TENSORS,
    WAYS,
    Place,
    alone,
    journaled,
    large_family,
    partial_of,
    small_family,
    undisturbed,
    unreadable,
)
from support.models import make_family
from support.pairwise import pairwise
from support.processes import merge_json, one_error, run
from support.tuning import FINE, tune

ONE_THREAD = (*CHUNKED, "--threads", "1")
#: Every read by a kernel is an `os.preadv`, and what is merged has the same bytes.
WATCHED = (*ONE_THREAD, "--backend", "reference")
HIGH, LOW = 2, 3  # phases of the exact path (survey.h)


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Forks children that need not import torch, which takes longer than a merge."""
    reference = "fuseo1_kernels.backends.reference.backend"
    with forking(tmp_path_factory.mktemp("forks"), reference) as forks:
        yield forks


@pytest.fixture(autouse=True)
def not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers have their part in every merge here."""
    monkeypatch.setattr(Source, "is_cached", lambda self, info: False)


# --- reading fails -----------------------------------------------------------------------


@pairwise("tensor, model, threads, backend", "wad", (0, 2), (1, 2), ("cpu", "reference"))
def test_a_tensor_that_cannot_be_read(
    tensor: str,
    model: int,
    threads: int,
    backend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`w` is merged first, and sampled by the kernels in C++; `a` and `d` come later."""
    tune(monkeypatch, **FINE)
    family = large_family(tmp_path)
    family.configure(parameters={"select_topk": 0.1})
    expected = undisturbed(family, *CHUNKED)
    file = (family.target(model) if model else family.base) / "model.safetensors"
    argv = (family.config, family.out, *CHUNKED, "--threads", threads, "--backend", backend)
    with unreadable(file, f"model.{tensor}.weight"):
        failed = run(*argv)
    one_error(failed.code, failed.err, file, f"'model.{tensor}.weight'", "Input/output error")
    assert not family.out.exists()
    complete = journaled(family.out)
    if threads == 1:
        assert complete == {"w": 0, "a": 1, "d": 4}[tensor]
    assert family.out.parent.exists() == (complete > 0)
    assert merge_json(*argv)["resumed"] == complete
    assert alone(family.out) == expected


def span(file: Path, tensor: str) -> tuple[int, int]:
    """Return the begin and the end of a tensor's bytes in a safetensors file."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    begin, end = json.loads(content[8:start])[tensor]["data_offsets"]
    return start + begin, start + end


@pytest.mark.parametrize("time", [1, 2], ids=["survey", "fuse"])
def test_the_second_half_of_a_tensor_cannot_be_read(
    time: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When what comes before was read, and in the fuse written, too."""
    tune(monkeypatch, **FINE)
    family = large_family(tmp_path)
    family.configure(parameters={"select_topk": 0.1})
    expected = undisturbed(family, *ONE_THREAD)
    file = family.target(1) / "model.safetensors"
    begin, end = span(file, "model.w.weight")
    real = os.preadv
    offsets: list[int] = []

    def preadv(fd: int, views: list[memoryview], offset: int) -> int:
        if os.path.samestat(os.fstat(fd), status):
            offsets.append(offset)
            if offsets.count(begin) == time and (begin + end) / 2 < offset + len(views[0]):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, views, offset)

    status = file.stat()
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", preadv)
        failed = run(family.config, family.out, *WATCHED)
    one_error(failed.code, failed.err, file, "'model.w.weight'", "Input/output error")
    assert begin < offsets[-1] < end
    assert not family.out.parent.exists()
    assert merge_json(family.config, family.out, *WATCHED)["resumed"] == 0
    assert alone(family.out) == expected


# --- models that change ------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["safetensors", "bin"])
def torch_bin(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def weights_of(model: Path) -> Path:
    [file] = [f for f in model.iterdir() if f.suffix in (".safetensors", ".bin")]
    os.utime(file, (1, 1))  # clocks of file systems are coarse
    return file


@dataclass(frozen=True)
class Reads:
    """In how many reads of a file the large tensor is surveyed and fused; each of the others takes two."""

    survey: int
    fuse: int

    @property
    def large(self) -> int:
        return self.survey + self.fuse

    @property
    def all(self) -> int:
        return self.large + 2 * (TENSORS - 1)

    def complete(self, at: int) -> int:
        """How many tensors are complete before the `at`-th read (from 1)."""
        return (at - self.large + 1) // 2 if at > self.large else 0


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory) -> Reads:
    family = large_family(tmp_path_factory.mktemp("counted"))
    real = os.preadv
    offsets: list[int] = []

    def preadv(fd: int, views: list[memoryview], offset: int) -> int:
        if os.path.samestat(os.fstat(fd), status):
            offsets.append(offset)
        return real(fd, views, offset)

    file = family.base / "model.safetensors"
    status, (begin, end) = file.stat(), span(file, "model.w.weight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", preadv)
        tune(patch, **FINE)
        undisturbed(family, *WATCHED)
    survey, large = offsets.index(begin, 1), sum(begin <= offset < end for offset in offsets)
    found = Reads(survey, large - survey)
    assert found.survey > 2 and found.fuse > 2 and len(offsets) == found.all
    assert all(begin <= offset < end for offset in offsets[:large])
    return found


#: The read (from 1) before which a model changes.
TIMES: dict[str, Callable[[Reads], int]] = {
    "the first": lambda reads: 1,
    "in the survey": lambda reads: 2,
    "between survey and fuse": lambda reads: reads.survey + 1,
    "in the fuse": lambda reads: reads.large,
    "the second tensor": lambda reads: reads.large + 1,
    "the second tensor's fuse": lambda reads: reads.large + 2,
    "the last": lambda reads: reads.all,
}


def at_times(hows: Sequence[str], times: Sequence[str]) -> list[Any]:
    """Changes and times as parameters; in the fast run each change at one of two times, in turn."""
    fast = {*zip(hows, itertools.cycle(("between survey and fuse", times[-1])), strict=False)}
    cases = list(itertools.product(hows, times))
    return [pytest.param(*c, marks=() if c in fast else pytest.mark.slow) for c in cases]


@pytest.mark.parametrize(("how", "when"), at_times(("shrinks", "is rewritten", "grows"), [*TIMES]))
def test_a_model_that_changes(
    how: str, when: str, reads: Reads, torch_bin: bool, forks: Forks, tmp_path: Path
) -> None:
    family = large_family(tmp_path, torch_bin=torch_bin)
    file = weights_of(family.target(1))
    before, at = file.read_bytes(), TIMES[when](reads)
    argv = (family.config, family.out, *WATCHED)
    ended = forks.run(*argv, sabotage=[("finely",), ("change", str(file), how, at)])
    assert file.read_bytes() != before
    word = "shrank" if "shrank" in ended.err else "changed since"
    one_error(ended.code, ended.err, file, word, "--no-resume")
    assert not family.out.exists()
    complete = reads.complete(at)
    assert journaled(family.out) == complete
    if how != "is rewritten":
        return
    again = forks.run(*argv)
    if complete:
        one_error(again.code, again.err, file, "changed since", "--no-resume")
        again = forks.run(*argv, "--no-resume")
    assert again.code == 0, again
    assert alone(family.out) == undisturbed(family, *ONE_THREAD)


def test_a_model_that_is_another_in_the_kernels_second_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More candidates than memory holds need several reads; in the second, nothing is where the first one found it.

    Nor in the first read after that. It is said once.
    """
    base = {"w": torch.zeros(1024, 1536), "v": torch.zeros(9)}
    family = make_family(tmp_path, [base, *({k: v + i for k, v in base.items()} for i in (1, 2))])
    family.configure(parameters={"select_topk": 0.5})
    file = family.target(1) / "model.safetensors"
    real, phases = CpuSurveyor.end_pass, list[int]()

    def end_pass(self: CpuSurveyor) -> None:
        real(self)
        phases.append(self._survey.phase)
        if phases in ([HIGH, LOW], [HIGH, LOW, HIGH]):
            begin, end = span(file, "w")
            with file.open("r+b") as stream:
                stream.seek(begin)
                stream.write(bytes(end - begin))
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    before = file.stat()
    monkeypatch.setattr(CpuSurveyor, "end_pass", end_pass)
    ended = run(family.config, family.out, *ONE_THREAD, "--json")
    assert phases[:3] == [HIGH, LOW, HIGH]  # the kernel itself said so, and the merge began again
    assert ended.code == 0 and ended.out.count("was touched during the merge") == 1, ended
    assert alone(family.out) == undisturbed(family, *ONE_THREAD)


@pytest.mark.parametrize(
    ("how", "when"), at_times(("is linked", "is rewritten and dated back"), [*TIMES])
)
def test_a_model_that_is_touched(
    how: str, when: str, reads: Reads, torch_bin: bool, forks: Forks, tmp_path: Path
) -> None:
    """The merge goes on by itself; what it merged from the file before is merged anew, as the file is now."""
    family = large_family(tmp_path, torch_bin=torch_bin)
    file = weights_of(family.target(1))
    sabotage = [("finely",), ("change", str(file), how, TIMES[when](reads))]
    ended = forks.run(family.config, family.out, *WATCHED, "--json", sabotage=sabotage)
    assert ended.code == 0, ended
    assert "was touched during the merge" in ended.out
    assert alone(family.out) == undisturbed(family, *ONE_THREAD)


@pytest.mark.parametrize(("how", "when"), at_times(("is replaced", "is removed"), [*TIMES][:4]))
def test_a_model_that_is_replaced(
    how: str, when: str, reads: Reads, torch_bin: bool, forks: Forks, tmp_path: Path
) -> None:
    family = large_family(tmp_path, torch_bin=torch_bin)
    file = weights_of(family.target(1))
    argv = (family.config, family.out, *WATCHED)
    ended = forks.run(*argv, sabotage=[("change", str(file), how, TIMES[when](reads))])
    if how == "is replaced" and ended.code == 0:  # nothing had been merged yet
        assert alone(family.out) == undisturbed(family, *ONE_THREAD)
        return
    one_error(ended.code, ended.err, file.parent)
    assert not family.out.exists()


@pytest.mark.parametrize("how", ["shrinks", "grows", "is rewritten", "is replaced", "is removed"])
def test_a_model_that_changes_before_it_is_read(
    how: str, torch_bin: bool, forks: Forks, tmp_path: Path
) -> None:
    family = large_family(tmp_path, torch_bin=torch_bin)
    file = weights_of(family.target(2))
    sabotage = [("change_early", str(file), how)]
    ended = forks.run(family.config, family.out, *ONE_THREAD, sabotage=sabotage)
    word = "cannot be opened" if how == "is removed" else "changed since"
    one_error(ended.code, ended.err, file, word)
    assert not family.out.parent.exists()


# --- syncing -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_all_is_synced_before_it_is_published(way: str, forks: Forks, tmp_path: Path) -> None:
    family = small_family(tmp_path)
    place = Place(forks, family, "synced", way, undisturbed(family, *ARGV))
    calls = place.run(("count",)).calls
    partial, model = partial_of(place.out), partial_of(place.out) / "model"
    steps = [
        i for i, call in enumerate(calls) if call.split(" ")[0].strip("_").startswith("rename")
    ]
    assert calls[steps[-1]].endswith(str(model))

    def last(path: Path, *names: str) -> int:
        return max(i for i, call in enumerate(calls) if call in {f"{n} {path}" for n in names})

    for name in place.expected:
        written = last(model / name, "open", "pwrite", "pwritev")
        assert written < last(model / name, "fsync") < steps[0], name
        assert written < last(model, "fsync") < steps[0]
    journal = partial / "journal"
    assert last(model, "fsync") < last(journal, "write") < last(journal, "fsync") < steps[0]
    assert last(partial, "fsync") < steps[0]
    assert steps[-1] < last(place.out.parent, "fsync") < last(journal, "unlink")


def test_a_sync_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the rename nothing is published; after it, all is. The same command ends well, reading the disk."""
    family = small_family(tmp_path)
    expected = undisturbed(family, *ARGV)
    real, synced = os.fsync, []

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        if len(synced) == fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    fails = 0
    merge_json(family.config, family.home / "whole" / "merged", *ARGV)
    count, before = len(synced), len(("the journal's mark", "the directory that has it"))
    after = len(("parent", "its parent, which has the parent's name since then"))
    assert count == before + len(expected) + len(("model", "journal", "partial")) + after
    for fails in range(1, count + 1):
        synced.clear()
        out = family.home / f"sync {fails}" / "merged"
        failed = run(family.config, out, *ARGV)
        one_error(failed.code, failed.err, out, "Input/output error")
        if fails <= count - after:
            assert not out.exists()
        else:
            assert tree(out) == expected
        assert merge_json(family.config, out, *ARGV)["resumed"] == TENSORS * (fails > before)
        assert alone(out) == expected


def test_what_was_not_synced_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a sync that failed the page cache has what the disk has not: it is dropped before anything is read."""
    family = small_family(tmp_path)
    real, seen = os.preadv, []

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        assert run(family.config, family.out, *ARGV).code == 1
    shards = {f.stat().st_ino for f in partial_of(family.out).rglob("*.safetensors")}

    def advise(fd: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED and (offset, length) == (0, 0):
            seen.append(("drop", os.fstat(fd).st_ino))

    def preadv(fd: int, views: Any, offset: int, *flags: int) -> int:
        seen.append(("read", os.fstat(fd).st_ino))
        return real(fd, views, offset, *flags)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(os, "preadv", preadv)
    merge_json(family.config, family.out, *ARGV)
    for shard in shards:
        assert seen.index(("drop", shard)) < seen.index(("read", shard))
