"""In which order tensors are merged, and which of them together."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from fuseo1_kernels.engine.schedule import MOST_JOBS, make_units
from fuseo1_kernels.engine.tuning import Tuning
from fuseo1_kernels.plan.job import Job
from support.disk import Disk, Model, job

MIB = 1 << 20


def place(job: Job) -> tuple[str, int]:
    """Return the base's file and the tensor's offset in it."""
    info = job.stored[0].info
    return str(info.file), info.offset


# Bytes, from none to many batches.
SIZES = st.one_of(st.integers(0, 100), st.integers(0, 6 * MIB), st.integers(0, 400 * MIB))


@given(
    placed=st.lists(st.tuples(SIZES, st.sampled_from(["a", "b", "c"])), max_size=60).flatmap(
        lambda found: st.permutations([(i, *each) for i, each in enumerate(found)])
    ),
    workers=st.integers(1, 16),
)
# 4 MiB are not large yet, nor are 15 among many of 8, less than a sixteenth of one worker's share.
@example(placed=[(0, 2 * MIB, "a"), (1, 1, "a")], workers=2)
@example(placed=[(i, (15 if i == 20 else 8) * MIB // 2, "a") for i in range(41)], workers=1)
def test_any_tensors(placed: list[tuple[int, int, str]], workers: int) -> None:
    """Every one in one unit: large ones alone, the largest first; then the others as the files have them."""
    model = Model(Disk(), "base"), Model(Disk(), "target")
    jobs = [job(f"t{i}", model, nbytes // 2 * 2, file, i) for i, nbytes, file in placed]
    units = make_units(jobs, workers)
    assert Counter(job.name for unit in units for job in unit.jobs) == Counter(j.name for j in jobs)
    assert sum(unit.input_bytes for unit in units) == sum(job.input_bytes for job in jobs)

    share = sum(job.input_bytes for job in jobs) // workers
    large = {j.name for j in jobs if j.input_bytes > max(share // 16, 4 * MIB)}
    first, rest = units[: len(large)], units[len(large) :]
    assert {job.name for unit in first for job in unit.jobs} == large
    assert all(len(unit.jobs) == 1 for unit in first)
    for one, after in pairwise(unit.jobs[0] for unit in first):
        assert one.input_bytes >= after.input_bytes
        assert one.input_bytes > after.input_bytes or place(one) < place(after)
    in_order = [job for unit in rest for job in unit.jobs]
    assert in_order == sorted(in_order, key=place)
    for unit in rest:
        *others, _ = unit.jobs
        assert sum(job.input_bytes for job in others) < 4 * MIB
    assert all(unit.input_bytes >= 4 * MIB for unit in rest[:-1])


def test_a_unit_has_not_too_many_tensors() -> None:
    """However small they are: a kill loses what is not recorded yet."""
    model = Model(Disk(), "base")
    jobs = [job(f"t{i}", [model], 2, "a", i) for i in range(2 * MOST_JOBS + 1)]
    assert [len(unit.jobs) for unit in make_units(jobs, 1)] == [MOST_JOBS, MOST_JOBS, 1]


def test_files_come_one_after_the_other() -> None:
    """The base's, whatever the order of the jobs; in small batches where sizes ask for it."""
    model = Model(Disk(), "base")
    jobs = [job(f"t{i}", [model], 8, "ab"[i % 2], i) for i in range(6)]
    by_place = ["t0", "t2", "t4", "t1", "t3", "t5"]
    for units, expected in (
        (make_units(jobs, 2), [by_place]),
        (make_units(jobs, 1, Tuning(batch=1, few=1)), [[name] for name in by_place]),
    ):
        assert [[job.name for job in unit.jobs] for unit in units] == expected
