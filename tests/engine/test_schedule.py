"""In which order tensors are merged, and which of them together."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.engine.schedule import Unit, make_units
from fuseo1_kernels.engine.tuning import Tuning
from fuseo1_kernels.methods.sce import Sce
from fuseo1_kernels.plan.job import Input, Job
from support.disk import Disk, Model, job
from support.models import base_state, make_family, tuned

MIB = 1 << 20


def place(job: Job) -> tuple[str, int]:
    """Return the base's file and the tensor's offset in it."""
    info = job.inputs[0].info
    return str(info.file), info.offset


def tensors(*mebibytes: float) -> list[Job]:
    """Tensors of so many MiB in one model, in the order of their file."""
    model = Model(Disk(), "m")
    sizes = [int(size * MIB) for size in mebibytes]
    return [job(f"t{i}", [model], n, offset=sum(sizes[:i])) for i, n in enumerate(sizes)]


def names(units: list[Unit]) -> list[list[str]]:
    return [[job.name for job in unit.jobs] for unit in units]


# Bytes, from none to many batches.
SIZES = st.one_of(st.integers(0, 100), st.integers(0, 6 * MIB), st.integers(0, 400 * MIB))


@given(
    placed=st.lists(st.tuples(SIZES, st.sampled_from(["a", "b", "c"])), max_size=60).flatmap(
        lambda found: st.permutations([(i, *each) for i, each in enumerate(found)])
    ),
    workers=st.integers(1, 16),
)
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


def test_the_largest_come_first_and_small_ones_together() -> None:
    """4 MiB are not large yet, and fill what is together."""
    units = make_units(tensors(1, 5, 4, 30, 2, 1, 5, 0.5), 2)
    assert names(units) == [["t3"], ["t1"], ["t6"], ["t0", "t2"], ["t4", "t5", "t7"]]
    assert [unit.input_bytes for unit in units[-2:]] == [5 * MIB, 7 * MIB // 2]


def test_what_is_large_goes_by_a_workers_share() -> None:
    """Forty layers of 8 MiB: one worker has a sixteenth's time to spare for any, sixteen have not."""
    layers = tensors(*[8] * 40, 9)
    in_order = [[f"t{i}"] for i in range(41)]
    assert names(make_units(layers, 1)) == in_order
    assert names(make_units(layers, 16)) == [["t40"], *in_order[:-1]]


def test_nothing() -> None:
    assert make_units([], 1) == []


def test_files_come_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base's, whatever the order of the jobs."""
    state = base_state()
    family = make_family(tmp_path, [state, tuned(state, 1)], shards=3)
    with open_source(str(family.base)) as base, open_source(str(family.target(1))) as target:
        jobs = []
        for name, info in base.tensors.items():
            inputs = (Input(base, info), Input(target, target.tensors[name]))
            jobs.append(Job(name, info.shape, inputs[0].dtype, inputs, Sce(1.0, "fuseo1", 1)))
        by_place = [job.name for job in sorted(jobs, key=place)]
        assert names(make_units(jobs[::-1], 2)) == [by_place]
        every_one = Tuning(batch=1, few=1)
        assert names(make_units(jobs[::-1], 1, every_one)) == [[name] for name in by_place]
