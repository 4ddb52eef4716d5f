"""One tensor through a worker's memory: any chunk size, any budget, the same bytes; what the system is told."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels import merge_checkpoints
from fuseo1_kernels.backends import _cpu
from fuseo1_kernels.backends.arrays import Buffer
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.checkpoint.header import TensorInfo
from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.checkpoint.source import Source
from fuseo1_kernels.engine.cpu import feed, worker
from fuseo1_kernels.engine.cpu.memory import WorkerMemory, memory_floor, plan_memory
from fuseo1_kernels.engine.cpu.worker import CpuWorker, _pieces
from fuseo1_kernels.errors import CheckpointError
from fuseo1_kernels.methods import METHODS
from fuseo1_kernels.methods.parameters import resolve_parameters
from fuseo1_kernels.methods.rule import TensorSpec
from fuseo1_kernels.methods.sce import Sce
from fuseo1_kernels.plan.inputs import Stored
from fuseo1_kernels.plan.job import Job
from support.models import Family, make_family, merged, states_of, weights
from support.pairwise import pairwise
from support.streamed import BUDGET, MIB, damaged_before, limited, merge_tensor
from support.tensors import BF16
from support.tuning import tune
from support.watching import watch

SHAPE = 311, 223  # 69,353 elements: 271 blocks of 256 and a bit, a segment of 65,536 and a bit


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return make_family(tmp_path_factory.mktemp("streamed"), states_of({"w": SHAPE}, *4 * [BF16]))


def merge_with(
    family: Family, memory: WorkerMemory, select_topk: float, backend: str, direct: bool = False
) -> bytes:
    """Merge the one tensor within `memory`; it is read once for the fuse and once a pass of the survey."""
    rule = Sce(select_topk, "mergekit", SHAPE[0] * SHAPE[1])
    merged, job, report = merge_tensor(family, "w", rule, memory, backend, direct)
    assert report.record.passes >= 1
    assert report.bytes_read == (1 + report.record.passes) * job.input_bytes
    return merged


@pairwise(
    "chunk, select_topk, backend",
    *((512, 4096, 4097, 5555, 65535, 65537, 1 << 20), (1.0, 0.5, 0.1), ("cpu", "reference")),
    together=1,
)
def test_chunked_is_whole(
    chunk: int, select_topk: float, backend: str, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte; the expected bytes are those of the in-memory function."""
    expected = merged(
        family.states, "w", parameters={"select_topk": select_topk, "variant": "mergekit"}
    )
    raw = expected.view(torch.uint8).numpy().tobytes()
    tune(monkeypatch, chunk=chunk, direct_ahead=100_000)
    # All of it at once; pieces of a few elements, and output of fewer than a chunk.
    for memory in (
        WorkerMemory(MIB, MIB, MIB),
        WorkerMemory(300_000, 20_001, MIB),
        WorkerMemory(4096, 2048, MIB),
    ):
        for direct in (False, True):
            assert merge_with(family, memory, select_topk, backend, direct) == raw


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("select_topk", [1.0, 0.5])
def test_what_a_direct_tensor_tells_the_system(
    select_topk: float, backend: str, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every pass: all of it is asked for once, as far ahead as it may be, and dropped chunk by chunk."""
    ahead = 12_800  # elements, of four models and two bytes each
    tune(monkeypatch, chunk=4096, direct_ahead=ahead * 8)
    told: list[tuple[object, ...]] = []
    sample, pieces = CpuWorker._sample, worker._pieces

    def will_need(self: Source, info: TensorInfo, start: int, nbytes: int) -> None:
        if (nbytes := min(nbytes, info.nbytes - start)) > 0:
            told.append(("need", Path(self.name).name, start // 2, nbytes // 2))

    def drop(self: Source, info: TensorInfo, start: int, nbytes: int) -> None:
        told.append(("drop", Path(self.name).name, start // 2, nbytes // 2))

    def sampled(*arguments: Any) -> None:
        sample(*arguments)  # asks for its own runs
        told.clear()

    def noted(numel: int, most: int, unit: int) -> Iterator[tuple[int, int]]:
        for start, count in pieces(numel, most, unit):
            chunks.append((start, count))
            yield start, count

    monkeypatch.setattr(Source, "will_need", will_need)
    monkeypatch.setattr(Source, "drop", drop)
    monkeypatch.setattr(CpuWorker, "_sample", sampled)
    watch(monkeypatch, feed.FileFeed, "_explained", lambda self: told.append(("merge",)))
    monkeypatch.setattr(worker, "_pieces", noted)
    chunks: list[tuple[int, int]] = []
    memory = WorkerMemory(300_000, 20_001, MIB)
    merge_with(family, memory, select_topk, backend)
    assert told == [("merge",)] * len(chunks)
    chunks.clear()
    merge_with(family, memory, select_topk, backend, direct=True)
    numel = SHAPE[0] * SHAPE[1]
    assert [start for start, _ in chunks].count(0) >= 2  # a survey at least, and the fuse
    models = ["base", "target1", "target2", "target3"]
    expected: list[tuple[object, ...]] = []
    for start, count in chunks:
        begin, end = (start + ahead if start else 0), min(start + ahead + count, numel)
        expected += [("need", name, begin, end - begin) for name in models if begin < end]
        expected += [("merge",), *(("drop", name, start, count) for name in models)]
    assert told == expected


def test_a_sample_of_a_direct_tensor_is_asked_for(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runs, before it reads them: they lie all over the tensor."""
    asked: list[tuple[int, int]] = []
    watch(monkeypatch, Source, "will_need", lambda _, info, *part: asked.append(part))
    monkeypatch.setattr(CpuWorker, "_chunks", lambda self, job, feed, most: iter([(0, job.numel)]))
    survey = _cpu.Survey(3, SHAPE[0] * SHAPE[1], 0.5, MIB)
    starts, length = survey.sample_runs()
    whole = WorkerMemory(MIB, MIB, MIB)
    merge_with(family, whole, 0.5, "cpu", direct=True)
    assert len(starts) > 0
    assert asked == [(start * 2, length * 2) for start in starts for _ in range(4)]
    asked.clear()
    merge_with(family, whole, 0.5, "cpu")
    assert asked == []


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("damage", ["shrinks", "is rewritten"])
@pytest.mark.parametrize("direct", [False, True])
def test_a_file_that_changes_between_survey_and_fuse(
    direct: bool, damage: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels read it themselves, and must tell."""
    family = make_family(tmp_path, states_of({"w": SHAPE}, *4 * [BF16]))
    file, engine = family.target(2) / "model.safetensors", type(load_backend(backend))
    said = damaged_before(monkeypatch, engine, "fuse_files", file, damage)
    with pytest.raises(CheckpointError, match=said):
        merge_with(family, WorkerMemory(MIB, MIB, MIB), 0.5, backend, direct)


def test_a_file_that_cannot_be_read() -> None:
    """EBADF from the kernels' own reads, told by the input's number."""
    closed = os.open("/dev/null", os.O_WRONLY)
    scratch = Buffer(MIB)
    files = [(closed, 0, 0)] * 4
    survey = _cpu.Survey(3, 1000, 1.0, MIB)
    with pytest.raises(_cpu.ReadError) as caught:
        survey.update_files(files, 0, 1000, (scratch.address, scratch.nbytes), 1)
    assert caught.value.args == (0, errno.EBADF)
    os.close(closed)
    bad: dict[str, Any]
    for bad in (
        {"scratch": (scratch.address, 100)},
        {"offset": 1},
        {"files": [(closed, 7, 0)] * 4},
        {"threads": 0},
    ):
        good: dict[str, Any] = {"files": files, "offset": 0, "count": 1000, "threads": 1}
        good["scratch"] = (scratch.address, scratch.nbytes)
        with pytest.raises(ValueError, match="outside the contract"):
            survey.update_files(**{**good, **bad})
    with pytest.raises(ValueError, match="wrong number of files"):
        survey.update_files(files[:3], 0, 1000, (scratch.address, scratch.nbytes), 1)


@pytest.mark.parametrize("unit", [256, 768, 5120])
def test_pieces(unit: int) -> None:
    """Of rows that are longer than `most` one at a time."""
    numels = (0, 1, 255, 256, 511, 513, 4097, 69_353, 200_000)
    for numel, most in itertools.product(numels, (512, 700, 4096, 4097, 65536, 99_999)):
        end = 0
        for start, count in _pieces(numel, most, unit):
            assert start == end and start % unit == 0 and 0 < count <= max(most, unit)
            end += count
        assert end == numel


# --- the budget --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A tensor whose inputs are eight times the budget, and which the output alone exceeds."""
    states = states_of({"model.embed_tokens.weight": (4096, 2048)}, *4 * [BF16])
    assert sum(t.nbytes for s in states for t in s.values()) == 8 * BUDGET
    return make_family(tmp_path_factory.mktemp("huge"), states)


@pytest.mark.serial
@pairwise("select_topk, way", (1.0, 0.1), ("cached", "read ahead", "direct"), together=1)
def test_a_tensor_of_eight_times_the_budget(select_topk: float, way: str, huge: Family) -> None:
    huge.configure(parameters={"select_topk": select_topk})
    merge_checkpoints(huge.config, huge.home / f"free{select_topk}", overwrite=True)
    name = f"limited{select_topk}-{way}"
    code, err = limited(huge, name, BUDGET, way)
    assert code == 0, err
    assert weights(huge.home / name) == weights(huge.home / f"free{select_topk}")


@pytest.mark.serial
def test_the_limit_is_one(huge: Family) -> None:
    """The same process cannot have four times the budget; it says so and leaves nothing."""
    code, err = limited(huge, "refused", 4 * BUDGET, "cached")
    assert code == 1
    assert "lower --max-memory" in err and "Traceback" not in err
    assert not any(path.name.startswith("refused") for path in huge.home.iterdir())


@pytest.mark.parametrize("threads", [1, 2, 64])
@pytest.mark.parametrize("budget", [8 * MIB, 100 * MIB, 2 << 30])
def test_what_is_planned_stays_within_the_budget(budget: int, threads: int, huge: Family) -> None:
    with open_source(str(huge.base)) as source:
        x = Stored(source, source.tensors["model.embed_tokens.weight"])
        job = Job("w", x.info.shape, x.dtype, (x, x, x), Sce(0.5, "fuseo1", x.info.numel))
        small = Job("b", (16,), x.dtype, (x, x), Sce(0.5, "fuseo1", 16))
        planned = plan_memory([job, small], budget, threads)
        assert planned.total <= budget
        assert planned.survey >= budget // 2 or planned.survey > 16 * 3 * job.numel
        # Rows that must be whole are decided in memory of their own, in as many threads as it suffices for.
        rule = METHODS["della"].rule(
            resolve_parameters("della", {"weight": 1.0, "density": 0.5}, [1, 2]),
            TensorSpec.of_shape("w", x.info.shape, ["1", "2"], True, 0),
        )
        job = replace(job, rule=rule)
        assert memory_floor([job]) < budget or budget == 8 * MIB
        if memory_floor([job]) < budget:
            planned = plan_memory([job, small], budget, threads)
            assert planned.total <= budget and planned.survey >= planned.floor
            assert 1 <= planned.threads <= threads
            assert planned.deciding >= planned.threads * 32 * x.info.shape[-1]
        # Reading and output know no tensor; a survey of a small one needs no more than its floor.
        assert plan_memory([small], budget, threads).total < (9 + 2 * threads) * MIB
