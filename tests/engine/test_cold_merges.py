"""Whole merges of models that lie on the disk alone, in part, or in the page cache, and what lies there afterwards."""

from __future__ import annotations

import mmap
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fuseo1_kernels import merge_checkpoints
from fuseo1_kernels.backends.cpu import CpuBackend
from fuseo1_kernels.checkpoint.header import TensorInfo
from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.checkpoint.page_cache import is_cached
from fuseo1_kernels.checkpoint.source import Source
from fuseo1_kernels.engine.cpu.worker import CpuWorker
from fuseo1_kernels.engine.read_ahead import ReadAhead, UnitReads
from fuseo1_kernels.plan.inputs import Stored
from fuseo1_kernels.plan.job import Job
from support.models import Family, assert_same_state, make_family, read_model, states_of, weights
from support.pairwise import pairwise
from support.tensors import BF16
from support.tuning import current, tune
from support.watching import watch

pytestmark = pytest.mark.serial

MIB = 1 << 20
# The page cache's largest folio: what shares one with the header stays.
FOLIO = 2 * MIB
# In the order of the file, in which they are merged, being of one size. What the system reads beyond a tensor's
# end is then the next one's.
LARGE = ("lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Three models of three tensors of 2 MiB and small ones, one of which lies between those."""
    small = ("model.layers.0.input_layernorm.weight", "model.norm.weight")
    shapes = dict.fromkeys(LARGE, (1024, 1024)) | dict.fromkeys(small, (1024,))
    family = make_family(tmp_path_factory.mktemp("cold"), states_of(shapes, BF16, BF16, BF16))
    family.configure(parameters={"select_topk": 0.5})
    return family


@pytest.fixture(scope="module")
def expected(family: Family) -> dict[str, bytes]:
    """Return the weights that the CPU merges from warm models; below the reference backend has the same."""
    merge_checkpoints(family.config, family.home / "expected", backend="cpu")
    return weights(family.home / "expected")


def chill(model: Path) -> None:
    """Take a model's weights out of the page cache."""
    for file in model.glob("*.safetensors"):
        fd = os.open(file, os.O_RDONLY)
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def warm(model: Path) -> None:
    for file in model.glob("*.safetensors"):
        file.read_bytes()


def pages(model: Path) -> Iterator[tuple[str, int, bool | None]]:
    """(tensor, offset, whether it is cached) of every page that belongs to a large tensor alone."""
    with open_source(str(model)) as source:
        for name in LARGE:
            with source.place(source.tensors[name]) as (fd, offset):
                first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
                end = (offset + source.tensors[name].nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
                for at in range(first, end, mmap.PAGESIZE):
                    yield name, at, is_cached(fd, at, mmap.PAGESIZE)


def all_cached(model: Path) -> bool:
    return all(cached for _, _, cached in pages(model))


def none_cached(model: Path) -> bool:
    """No page of a large tensor, but for the first folio, which the header's reader brings."""
    return not any(cached for _, at, cached in pages(model) if at >= FOLIO)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Names of the tensors that a merge reads ahead, and of those that it reads the direct way."""
    seen: dict[str, set[str]] = {"ahead": set(), "direct": set()}

    def merged(worker: CpuWorker, job: Job, direct: Sequence[Stored] = ()) -> None:
        if direct:
            seen["direct"].add(job.name)

    watch(monkeypatch, Source, "read_ahead", lambda _, info, *part: seen["ahead"].add(info.name))
    watch(monkeypatch, CpuWorker, "merge", merged)
    return seen


def merge(family: Family, **options: Any) -> dict[str, bytes]:
    merge_checkpoints(
        family.config, family.home / "merged", overwrite=True, tuning=current(), **options
    )
    return weights(family.home / "merged")


#: Which models are warm, a backend, and threads.
MERGES = [((), "cpu", 3), ((), "reference", 1), ((0, 2), "cpu", 1), ((0, 1, 2), "cpu", None)]


@pairwise("how, room", MERGES, ("plenty", "none"), together=1)
def test_models_stay_as_they_were(
    how: tuple[tuple[int, ...], str, int | None],
    room: str,
    family: Family,
    expected: object,
    ways: dict[str, set[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that something else has use for stays in the page cache; what was brought beside it goes.

    What is cold is read ahead, or goes the direct way where there is no room; for what is warm nothing is brought.
    """
    warmed, backend, threads = how
    if room == "none":
        tune(monkeypatch, page_cache=0)
    for number, model in enumerate(family.models):
        (warm if number in warmed else chill)(model)
        assert number in warmed or none_cached(model)
    assert merge(family, backend=backend, threads=threads) == expected
    for number, model in enumerate(family.models):
        assert all_cached(model) if number in warmed else none_cached(model)
    if len(warmed) == 3:
        assert ways == {"ahead": set(), "direct": set()}
    elif room == "none":
        assert not ways["ahead"] and ways["direct"] == set(family.states[0])
    else:
        assert ways["ahead"] >= set(LARGE) and not ways["direct"]


@pytest.mark.parametrize("select_topk", [1.0, 0.5])
def test_a_direct_unit_of_several_tensors(
    select_topk: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is dropped for itself: one of a few elements beside one of several chunks."""
    shapes = {"d.weight": (16,), "b.weight": (600, 512), "c.weight": (700,)}
    family = make_family(tmp_path, states_of(shapes, BF16, BF16, BF16))
    family.configure(parameters={"select_topk": select_topk})
    tune(monkeypatch, page_cache=0)
    tune(monkeypatch, chunk=4096)
    for model in family.models:
        chill(model)
    dropped = Counter[tuple[str, str]]()

    def noted(self: Source, info: TensorInfo, start: int, nbytes: int) -> None:
        assert 0 <= start < start + nbytes <= info.nbytes
        dropped[Path(self.name).name, info.name] += nbytes

    watch(monkeypatch, Source, "drop", noted)
    result = merge_checkpoints(family.config, family.out, tuning=current())
    assert_same_state(read_model(family.out), family.expected(select_topk=select_topk))
    assert result.exact_path == 0
    twice = {
        name: 2 * tensor.nbytes for name, tensor in family.states[0].items()
    }  # by survey and fuse
    assert dropped == {(m.name, name): n for m in family.models for name, n in twice.items()}


def test_the_last_worker_has_all_threads(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers with a thread each; when one has seen the end, the other's next call gets both."""
    tune(monkeypatch, chunk=1 << 19)
    first, begun, ended = LARGE[0], threading.Event(), threading.Event()
    given: dict[str, list[int]] = {name: [] for name in family.states[0]}
    current = threading.local()
    take = ReadAhead.take

    def taken(self: ReadAhead) -> UnitReads | None:
        unit = take(self)
        if unit is None:
            ended.set()
        return unit

    def fuse(cpu, files, params, out, offset, threads, scratch):  # type: ignore[no-untyped-def]
        given[current.name].append(threads)
        # One worker stays with the first tensor until the other has merged all others.
        if current.name == first:
            begun.set()
        assert (ended if current.name == first else begun).wait(30)

    monkeypatch.setattr(ReadAhead, "take", taken)
    watch(monkeypatch, CpuWorker, "merge", lambda _, job, *at: setattr(current, "name", job.name))
    watch(monkeypatch, CpuBackend, "fuse_files", fuse)
    merge(family, threads=2)
    assert given.pop(first) == [1, 2]
    assert {count for counts in given.values() for count in counts} == {1}
