"""Units come in order, readers bring them before a worker takes them, and workers' reads are forgotten."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fuseo1_kernels.engine import read_ahead
from fuseo1_kernels.engine.read_ahead import ReadAhead, UnitReads
from fuseo1_kernels.engine.schedule import Unit
from fuseo1_kernels.engine.tuning import DEFAULT_TUNING, Tuning
from fuseo1_kernels.errors import CheckpointError
from support.disk import Disk, Model, job

# Any wait that takes longer is a deadlock.
TIMEOUT = 30
PLENTY = 1 << 40


def units(models: Sequence[Model], *sizes: int) -> list[Unit]:
    """A unit of one tensor, named t0, t1, ..., for each of `sizes`."""
    return [Unit((job(f"t{i}", models, size),)) for i, size in enumerate(sizes)]


class Waits(threading.Condition):
    """Tells when so many threads wait for it, with none of them on its way."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._threads, self._waiting = threads, 0
        self._all = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self._waiting += 1
        if self._waiting == self._threads:
            self._all.set()
        assert super().wait(TIMEOUT), "waits for ever"
        return True

    def notify_all(self) -> None:
        self._waiting = 0
        self._all.clear()
        super().notify_all()

    def until_all_wait(self) -> None:
        assert self._all.wait(TIMEOUT), "a thread goes on that must wait"


def made(
    units: Sequence[Unit],
    workers: int,
    room: int,
    skipped: Container[str] = (),
    waiting: int = 1,
    tuning: Tuning = DEFAULT_TUNING,
) -> tuple[ReadAhead, Waits]:
    """A read_ahead, and what tells when so many threads wait for it."""
    found = ReadAhead(units, workers, room, skipped, tuning)
    found._changed = waits = Waits(waiting)
    return found, waits


@contextmanager
def at_work(*threads: Callable[[], object]) -> Iterator[list[Any]]:
    """Run them until they end, which they must; what they return is there afterwards."""
    results: list[Any] = []
    with ThreadPoolExecutor(len(threads)) as pool:
        futures = [pool.submit(work) for work in threads]
        yield results
        results += [future.result(TIMEOUT) for future in futures]


def take(found: ReadAhead) -> UnitReads:
    """The next unit, which there is."""
    unit = found.take()
    assert unit is not None
    return unit


def take_all(found: ReadAhead) -> list[UnitReads]:
    """A worker's work."""
    taken = []
    while unit := found.take():
        taken.append(unit)
        found.done(unit)
    return taken


def names(unit: Unit | UnitReads | None) -> list[str]:
    assert unit is not None
    return [job.name for job in unit.jobs]


@pytest.fixture
def disk() -> Disk:
    return Disk()


# --- the order ---------------------------------------------------------------------------


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_units_come_in_order_when_they_were_brought(readers: int, disk: Disk) -> None:
    models = [Model(disk, "base"), Model(disk, "target")]
    found, _ = made(units(models, 8, 16, 2, 4, 32), 1, PLENTY)
    with at_work(*[found.read] * readers):
        for number in range(5):
            unit = take(found)
            assert names(unit) == [f"t{number}"]
            assert not unit.direct
            read = disk.told("read")
            assert {f"base/t{number}", f"target/t{number}"} <= set(read)
            found.done(unit)
            forgotten = [f"{model}/t{n}" for n in range(number + 1) for model in ("base", "target")]
            assert disk.told("forget") == forgotten
        assert found.take() is None
    assert sorted(disk.told("read")) == sorted(disk.told("forget")) == sorted(forgotten)


def test_one_reader_reads_model_by_model(disk: Disk) -> None:
    """Of the units in order; a unit's tensors in a model one after the other."""
    models = [Model(disk, "base"), Model(disk, "target")]
    pair = Unit((job("a", models, 8), job("b", models, 8)))
    found, _ = made([pair, *units(models, 4)], 1, PLENTY)
    found.read()
    expected = ["base/a", "base/b", "target/a", "target/b", "base/t0", "target/t0"]
    assert disk.told("read") == expected


def test_a_worker_waits_for_its_inputs(disk: Disk) -> None:
    """The second model is brought only when the worker has come and waits."""
    models = [Model(disk, "base"), Model(disk, "target")]
    found, waits = made(units(models, 8), 1, PLENTY, waiting=1)
    disk.before_read = lambda name: waits.until_all_wait() if name == "target/t0" else None
    with at_work(found.take) as taken:
        waits.until_all_wait()
        with at_work(found.read):
            pass
    assert disk.told("read") == ["base/t0", "target/t0"]
    assert [names(unit) for unit in taken] == [["t0"]]


def test_models_of_a_unit_are_read_at_once(disk: Disk) -> None:
    barrier = threading.Barrier(3)
    disk.before_read = lambda _: barrier.wait(TIMEOUT)
    found, _ = made(units([Model(disk, name) for name in "abc"], 8, 8), 1, PLENTY)
    with at_work(*[found.read] * 3):
        assert len(take_all(found)) == 2
    assert [name[2:] for name in disk.told("read")] == ["t0"] * 3 + ["t1"] * 3


def test_workers_and_readers_that_there_is_work_for(disk: Disk) -> None:
    found, _ = made(units([Model(disk, "m")], 2, 2, 2), 2, PLENTY)
    assert (found.readers, found.working) == (read_ahead.READERS, 2)
    found.read()
    assert len(take_all(found)) == 3
    assert found.working == 1  # who keeps working has all threads
    assert found.take() is None and found.working == 0
    assert ReadAhead(units([Model(disk, "m")], 2), 2, PLENTY).readers == 1
    assert ReadAhead(units([Model(disk, "m", ["t0"])], 2), 2, PLENTY).readers == 0


# --- what is there already ---------------------------------------------------------------


def test_what_needs_no_reader_is_handed_out_at_once(disk: Disk) -> None:
    """What is cached, what there is no room for, and what an earlier run has written."""
    models = [Model(disk, "base", ["t0"]), Model(disk, "target", ["t0"])]
    found, _ = made(units(models, 8, 18, 8, 8), 1, room=32, skipped={"t2"})
    assert found.readers == 2
    for number, direct in enumerate((False, True, False)):
        unit = take(found)
        assert names(unit) == [f"t{number}"] and unit.direct == direct
        found.done(unit)
    assert disk.log == [("forget", "base/t1"), ("forget", "target/t1")]  # the worker's own reads
    with at_work(found.read):
        assert [names(unit) for unit in take_all(found)] == [["t3"]]
    assert disk.told("read") == ["base/t3", "target/t3"] == disk.told("forget")[2:]
    assert ReadAhead(units(models, 2, 2), 1, capacity=0).readers == 0


def test_what_was_cached_is_asked_before_anything_is_read(disk: Disk) -> None:
    model = Model(disk, "m")
    found, _ = made(units([model], 8), 1, PLENTY)
    model.cached = ["t0"]
    with at_work(found.read):
        take_all(found)
    assert disk.told("read") == disk.told("forget") == ["m/t0"]


def test_what_waits_is_bounded(disk: Disk) -> None:
    """Units come until they are `read_ahead` bytes; one that is larger comes when nothing else waits."""
    sizes, tuning = (10, 20, 2, 40, 8, 8, 8, 8), Tuning(read_ahead=30)
    found, waits = made(units([Model(disk, "m")], *sizes), 1, PLENTY, waiting=2, tuning=tuning)
    with at_work(found.read, found.read):
        for taken, read in enumerate((2, 3, 3, 4, 7)):
            waits.until_all_wait()
            assert sorted(disk.told("read")) == [f"m/t{i}" for i in range(read)]
            unit = take(found)
            assert names(unit) == [f"t{taken}"]
    assert sorted(disk.told("read")) == [f"m/t{i}" for i in range(8)]


def test_what_is_not_done_is_bounded(disk: Disk) -> None:
    """A worker that holds its units keeps others from being brought, until it says that it is done."""
    found, waits = made(units([Model(disk, "m")], 10, 20, 4, 30), 1, room=32, waiting=1)

    def waits_when_read(count: int) -> None:
        waits.until_all_wait()
        assert disk.told("read") == [f"m/t{i}" for i in range(count)]

    with at_work(found.read):
        waits_when_read(2)
        held = [take(found), take(found)]
        waits_when_read(2)
        found.done(held[0])
        waits_when_read(3)
        found.done(held[1])
        waits_when_read(3)
        held.append(take(found))
        waits_when_read(3)
        found.done(held[2])
    assert disk.told("read") == ["m/t0", "m/t1", "m/t2", "m/t3"]
    assert disk.most == 30


INPUTS = st.tuples(st.sampled_from(["base", "target"]), st.integers(0, 17).map("t{}".format))


# A deadlock is not made smaller: each takes its time.
@settings(phases=[Phase.explicit, Phase.generate])
@given(
    sizes=st.lists(
        st.lists(st.integers(0, 40).map(lambda n: 2 * n), min_size=1, max_size=3), max_size=6
    ),
    cached=st.sets(INPUTS),
    skipped=st.sets(st.integers(0, 17).map("t{}".format), max_size=3),
    workers=st.integers(1, 4),
    readers=st.integers(1, 3),
    room=st.integers(0, 200),
    tuning=st.builds(Tuning, read_ahead=st.integers(0, 100), step=st.integers(1, 50)),
)
def test_any_units(
    sizes: list[list[int]],
    cached: set[tuple[str, str]],
    skipped: set[str],
    workers: int,
    readers: int,
    room: int,
    tuning: Tuning,
) -> None:
    """Everything ends and is taken once. What was not cached is read once, in steps, or by the worker if the unit is
    larger than `room`, which what was brought never exceeds; then it is forgotten."""
    disk, number = Disk(), itertools.count()
    models = [Model(disk, m, [t for of, t in cached if of == m]) for m in ("base", "target")]
    given = [Unit(tuple(job(f"t{next(number)}", models, n) for n in group)) for group in sizes]
    found, _ = made(given, workers, room, skipped, tuning=tuning)
    with at_work(*[found.read] * readers, *[lambda: take_all(found)] * workers) as results:
        pass
    taken = [unit for result in results if isinstance(result, list) for unit in result]
    assert sorted(map(names, taken)) == sorted(map(names, given))
    assert found.working == 0
    reads, absent, direct = Counter[str](), list[str](), list[list[str]]()
    for unit in given:
        left = [
            (f"{model.name}/{one.name}", -(-one.input_bytes // 2 // tuning.step))
            for one in unit.jobs
            for model in models
            if one.name not in skipped and (model.name, one.name) not in cached
        ]
        absent += [name for name, _ in left]
        if left and unit.input_bytes > room:
            direct.append(names(unit))
        else:
            reads.update(dict(left))
    assert Counter(disk.told("read")) == +reads
    assert sorted(disk.told("forget")) == sorted(absent)
    assert sorted(names(unit) for unit in taken if unit.direct) == sorted(direct)
    assert disk.most <= room and not disk.brought


# --- when it does not go well ------------------------------------------------------------


def test_close_wakes_everyone(disk: Disk) -> None:
    """A reader that waits for room, a worker that waits for the reader."""
    found, waits = made(units([Model(disk, "m")], 8, 8, 8), 2, room=8, waiting=2)
    with at_work(found.read):
        assert names(found.take()) == ["t0"]
        with at_work(found.take):
            waits.until_all_wait()
            found.close()
    assert disk.told("read") == ["m/t0"]
    assert found.take() is None


def test_close_ends_a_read_after_its_step(disk: Disk) -> None:
    found, _ = made(units([Model(disk, "m")], 40, 40), 1, PLENTY, tuning=Tuning(step=4))
    disk.before_read = lambda _: found.close()
    with at_work(found.read):
        pass
    assert disk.told("read") == ["m/t0"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), CheckpointError("is gone")])
def test_a_reader_survives_what_cannot_be_read(error: Exception, disk: Disk) -> None:
    """The worker reads it too, and tells; the other inputs are brought, and all come."""

    def fail(tensor: str) -> None:
        if tensor == "base/t0":
            raise error

    disk.before_read = fail
    models = [Model(disk, "base"), Model(disk, "target")]
    found, _ = made(units(models, 8, 8), 1, PLENTY)
    with at_work(found.read):
        assert [names(unit) for unit in take_all(found)] == [["t0"], ["t1"]]
    assert disk.told("read") == ["target/t0", "base/t1", "target/t1"]


def test_what_was_brought_for_nothing_is_forgotten(disk: Disk) -> None:
    """After a failure: what was read for units that no worker finished."""
    found = ReadAhead(units([Model(disk, "a"), Model(disk, "b", ["t1"])], 2, 4, 6), 1, PLENTY)
    found.read()
    first = take(found)
    found.done(first)
    assert disk.told("forget") == ["a/t0", "b/t0"]
    found.forget_rest()
    assert sorted(disk.told("forget")) == ["a/t0", "a/t1", "a/t2", "b/t0", "b/t2"]
    found.forget_rest()
    assert len(disk.told("forget")) == 5


def test_where_nobody_knows_what_is_cached_nothing_is_forgotten(disk: Disk) -> None:
    """It is read ahead, which costs little where it is cached, and left to whoever had it there."""
    model = Model(disk, "m")
    model.is_cached = lambda info: None  # type: ignore[method-assign,assignment,return-value]
    found = ReadAhead(units([model], 2), 1, PLENTY)
    found.read()
    unit = take(found)
    assert not unit.direct
    found.done(unit)
    found.forget_rest()
    assert disk.log == [("read", "m/t0")]
    assert take(ReadAhead(units([model], 2), 1, 0)).direct_inputs(unit.jobs[0]) == []
