"""Columns that are merged by themselves: the same as tensors of their own, in memory and from files, in any memory."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels import MergeError, merge_state_dicts, merge_tensors
from fuseo1_kernels.backends.cpu import CpuBackend
from fuseo1_kernels.backends.registry import BACKENDS
from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.config.load import as_config
from fuseo1_kernels.engine.cpu import columns, readers
from fuseo1_kernels.engine.cpu.memory import ColumnMemory, WorkerMemory, memory_floor, plan_memory
from fuseo1_kernels.engine.cpu.worker import CpuWorker
from fuseo1_kernels.engine.dry_run import dry_run
from fuseo1_kernels.engine.options import MergeOptions
from fuseo1_kernels.engine.tuning import DEFAULT_TUNING
from fuseo1_kernels.engine.verify import verify_model
from fuseo1_kernels.errors import CheckpointError
from fuseo1_kernels.methods import METHODS
from fuseo1_kernels.methods.linear import Linear
from fuseo1_kernels.methods.rule import ByColumn, ByRow, Rule, TensorSpec
from fuseo1_kernels.methods.slerp import NuSlerp
from fuseo1_kernels.plan.job import Job
from fuseo1_kernels.plan.plan import make_plan
from support.engine_runs import MIB, merge, spoil
from support.method_cases import BY_COLUMN, CASES
from support.models import Family, assert_same_state, make_family, read_model, states_of, weights
from support.pairwise import pairwise
from support.processes import HEAVY, MERGE, imported, spawn
from support.streamed import damaged_before, limited, merge_tensor
from support.tensors import BF16, CPUS, FP16, FP32, assert_same_bits, siblings
from support.tuning import tune
from support.watching import watch

SHAPES: dict[str, tuple[int, ...]] = {
    "matrix": (301, 67),
    "tall": (401, 3),
    "wide": (3, 257),
    "three": (5, 7, 11),
    "four": (4, 3, 1, 2),
    "row": (1, 40),
    "column": (40, 1),
    "vector": (40,),
    "scalar": (),
    "no rows": (0, 3),
    "no columns": (3, 0),
    "none": (3, 0, 5),
}


COLUMNS = CASES["nuslerp, by column"]
PARAMETERS = {"weight": [0.3, 0.5], **BY_COLUMN}


@pytest.fixture(scope="module", params=[(BF16, BF16, BF16), (BF16, FP16, FP32)], ids=str)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    family = make_family(tmp_path_factory.mktemp("columns"), states_of(SHAPES, *request.param))
    COLUMNS.configure(family)
    return family


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of few columns, whatever the memory."""
    monkeypatch.setattr(
        columns.ColumnMerger, "_width", lambda self, job, rule: min(7, rule.columns)
    )


# --- the rule ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_a_column(name: str) -> None:
    shape = SHAPES[name]
    values = {**COLUMNS.values, "weight": (1.0, 1.0)}
    rule = METHODS["nuslerp"].rule(values, TensorSpec.of_shape("w", shape, "ab", True, 0))
    if name in ("matrix", "tall", "wide", "three", "four"):
        across = torch.Size(shape[1:]).numel()
        assert rule == ByColumn(NuSlerp(0.5, True, False), shape[0], across)
        assert repr(rule).endswith(f"rows={shape[0]}, columns={across})")
    elif name == "row":
        assert rule == ByRow(NuSlerp(0.5, True, True), 1)
    else:
        assert rule == NuSlerp(0.5, True, name == "scalar")


# --- in memory ---------------------------------------------------------------------------


@pairwise(
    "backend, shape, has_base",
    *(("reference", *CPUS), ((37, 5), (3, 300), (5, 3, 4)), (True, False)),
    together=1,
    indirect=["backend"],
)
def test_columns_are_merged_as_tensors_of_their_own(
    backend: str, shape: tuple[int, ...], has_base: bool
) -> None:
    tensors = siblings(shape, 2, (BF16, FP32, FP16))[not has_base :]
    options: dict[str, Any] = {"base_index": 0 if has_base else None, "backend": backend}
    merged = merge_tensors(tensors, "nuslerp", parameters=PARAMETERS, **options)
    own = {"weight": PARAMETERS["weight"]}
    for k, column in enumerate(merged.reshape(shape[0], -1).t()):
        parts = [t.reshape(shape[0], -1)[:, k] for t in tensors]
        alone = merge_tensors(parts, "nuslerp", parameters=own, **options)
        assert_same_bits(column, alone)


def test_any_strides_and_any_dtype(backend: str) -> None:
    tensors = siblings((6, 20, 4), 2, (BF16, FP32, FP16))
    options: dict[str, Any] = {"base_index": 0, "parameters": PARAMETERS, "backend": backend}
    expected = merge_tensors(tensors, "nuslerp", out_dtype=BF16, **options)
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors]
    strided[1].requires_grad_()
    out = torch.zeros((4, 20, 6), dtype=BF16).transpose(0, 2)
    found = merge_tensors(strided, "nuslerp", out=out, **options)
    assert found is out and not out.requires_grad
    assert_same_bits(out, expected)
    states = [{"w": t, "b": t[0, 0]} for t in tensors]
    whole = merge_state_dicts(
        states, "nuslerp", base=0, parameters=PARAMETERS, backend=backend, out_dtype=BF16
    )
    assert_same_bits(whole["w"], expected)


@pytest.mark.parametrize("strided", [False, True])
def test_what_out_holds_after_an_error(backend: str, strided: bool) -> None:
    """Inputs at fault: what it held. An overflow: what propagate returns."""
    tensors = siblings((9, 8), 2, FP32)
    tensors[2][3, 6] = torch.nan
    options: dict[str, Any] = {"base_index": 0, "parameters": PARAMETERS, "backend": backend}
    out = torch.full((8, 9), 7.0).t() if strided else torch.full((9, 8), 7.0)
    with pytest.raises(MergeError, match="model 'c' has 1"):
        merge_tensors(tensors, "nuslerp", out=out, ids="abc", **options)
    assert (out == 7).all()
    merged = merge_tensors(tensors, "nuslerp", out=out, nonfinite="propagate", **options)
    # An element of a column says nothing of the others, and the column counts without it.
    assert merged.isnan().nonzero().tolist() == [[3, 6]]

    tensors = [torch.zeros(9, 8), torch.full((9, 8), 3e4), torch.full((9, 8), 6e4)]
    options["parameters"] = {**BY_COLUMN, "weight": [-1.0, 2.0]}
    out = out.to(FP16)
    with pytest.raises(MergeError, match="72 merged elements overflow float16"):
        merge_tensors(tensors, "nuslerp", out=out, **options)
    assert out.isinf().all()


# --- from files --------------------------------------------------------------------------


def merge_within(
    family: Family, name: str, read: int, backend: str = "cpu", rule: Rule | None = None
) -> tuple[bytes, Job, Any]:
    """Merge one tensor by a worker with so much memory for a slab; its bytes, and its report."""
    shape = family.states[0][name].shape
    by_column = METHODS["nuslerp"].rule(
        COLUMNS.values, TensorSpec.of_shape(name, tuple(shape), "ab", True, 0)
    )
    memory = WorkerMemory(read, 4 * shape.numel(), MIB)
    return merge_tensor(family, name, rule or by_column, memory, backend)


@pairwise("name, backend", ("matrix", "tall", "wide", "three"), BACKENDS, together=1)
def test_any_slab(name: str, backend: str, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one column, of some, of all; every byte of the inputs is read once."""
    tensors = [state[name] for state in family.states]
    expected = merge_tensors(tensors, "nuslerp", base_index=0, parameters=PARAMETERS,
                             out_dtype=tensors[2].dtype)  # fmt: skip
    raw = expected.contiguous().view(torch.uint8).numpy().tobytes()
    reads: list[int] = []
    watch(monkeypatch, readers, "read_all", lambda *read: reads.append(read[-1].nbytes))
    rows = tensors[0].shape[0]
    column = sum(t.element_size() for t in tensors) + max(t.element_size() for t in tensors)
    for width in (1, 2, 3, 10, 10_000):
        reads.clear()
        tune(monkeypatch, chunk=1000 if width == 3 else DEFAULT_TUNING.chunk)  # of the output
        found, job, report = merge_within(family, name, width * rows * column + 192, backend)
        assert found == raw
        assert sum(reads) == job.input_bytes == report.bytes_read
        assert report.record.passes == 1 and report.record.energy == ()
        assert len(reads) == 3 or width < 10_000


@pytest.mark.parametrize("backend", ["cpu", pytest.param("reference", marks=pytest.mark.slow)])
def test_whole_merges(backend: str, family: Family, narrow: None) -> None:
    expected = COLUMNS.expected(family)
    for threads, memory in ((1, 10 * MIB), (3, 100 * MIB)):
        merge(family, "merged", backend=backend, threads=threads, max_memory=memory,
              overwrite=True, resume=False)  # fmt: skip
        assert_same_state(read_model(family.home / "merged"), expected)
    recomputed = verify_model(family.home / "merged", recompute=None)
    assert recomputed.problems == () and set(recomputed.recomputed) == set(SHAPES)


@pytest.mark.parametrize("torch_bin", [False, True])
def test_kinds_of_files(torch_bin: bool, tmp_path: Path) -> None:
    """safetensors need no torch."""
    family = make_family(tmp_path, states_of(SHAPES, BF16, FP16, FP32), torch_bin=torch_bin)
    COLUMNS.configure(family)
    ran = spawn("-X", "importtime", *MERGE, family.config, family.out)
    assert ran.code == 0, ran.err
    assert torch_bin or not imported(ran.err) & HEAVY
    assert_same_state(read_model(family.out), COLUMNS.expected(family))


def test_embeddings_that_are_cropped(tmp_path: Path, narrow: None) -> None:
    """The common rows are a prefix of either model's."""
    name = "model.embed_tokens.weight"
    models = states_of({name: (31, 17)}, BF16, BF16, BF16)
    models[1][name] = models[1][name][:29].clone()
    family = make_family(tmp_path, models, tokenizer={})
    COLUMNS.configure(family)
    merge(family, crop_embeddings=True)
    cropped = [state[name][:29] for state in models]
    expected = merge_tensors(cropped, "nuslerp", base_index=0, parameters=PARAMETERS)
    assert_same_state(read_model(family.out), {name: expected})


# --- what must not be merged -------------------------------------------------------------


def test_a_rule_that_surveys_nothing(tmp_path: Path) -> None:
    """The inputs are surveyed after all, to name the model."""
    family = make_family(tmp_path, states_of(SHAPES, BF16, BF16, BF16))
    rule = ByColumn(Linear((0.5, 0.25, 0.25), True), 301, 67)
    merged, _, report = merge_within(family, "matrix", MIB, rule=rule)
    tensors = [state["matrix"] for state in family.states]
    plain = merge_tensors(tensors, "linear", parameters={"weight": [0.5, 0.25, 0.25]})
    assert merged == plain.view(torch.uint8).numpy().tobytes() and report.record.passes == 0
    spoil(family, 1, "matrix", {5: torch.inf})
    with pytest.raises(CheckpointError, match=r"target1, tensor matrix: 1 NaN or infinite"):
        merge_within(family, "matrix", MIB, rule=rule)


@pytest.mark.parametrize("damage", ["shrinks", "is rewritten"])
def test_a_file_that_changes_between_slabs(
    damage: str, tmp_path: Path, narrow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = make_family(tmp_path, states_of({"matrix": (301, 67)}, BF16, BF16, BF16))
    file = family.target(2) / "model.safetensors"
    said = damaged_before(monkeypatch, CpuBackend, "survey", file, damage)
    with pytest.raises(CheckpointError, match=said):
        merge_within(family, "matrix", MIB)


@pytest.mark.parametrize(
    ("owner", "name"), [(CpuBackend, "survey"), (readers, "read_all"), (CpuWorker, "_write")]
)
def test_a_merge_of_columns_stops_at_once(
    owner: Any, name: str, family: Family, narrow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between columns, rows that are read, and pieces of the output."""
    stops: list[threading.Event] = []
    calls: list[object] = []

    def stopping(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 10:
            stops[0].set()

    tune(monkeypatch, chunk=1000)
    watch(monkeypatch, columns.ColumnMerger, "__init__", lambda *of: stops.append(of[2].stop))
    watch(monkeypatch, owner, name, stopping)
    with pytest.raises(MergeError, match="the merge was stopped"):
        merge_within(family, "matrix", MIB)
    assert len(calls) == 10


def test_verify_takes_what_it_needs(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    COLUMNS.configure(family)
    merge(family, "verified", overwrite=True)
    monkeypatch.setattr("fuseo1_kernels.engine.recompute.DEFAULT_MAX_MEMORY", 1 << 16)
    assert verify_model(family.home / "verified", recompute=None).problems == ()


# --- memory ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """An output of 12 MB, whose inputs are three times as large, and one whose slabs are larger than it."""
    shapes = {"w": (2048, 3000), "tall": (400_001, 2)}
    family = make_family(tmp_path_factory.mktemp("large"), states_of(shapes, BF16, BF16, BF16))
    COLUMNS.configure(family)
    return family


def refused(family: Family) -> int:
    """The least memory of which the merge says that it suffices, in MiB."""
    with pytest.raises(MergeError, match=r"--max-memory 9 MiB is too little .* the least is") as e:
        merge(family, "refused", max_memory=9 * MIB)
    assert not list(family.home.glob("refused*"))
    said = str(e.value)
    assert dry_run(as_config(family.config), None, MergeOptions(max_memory=9 * MIB)).problems == (
        said,
    )
    return int(said.split()[-2])


def test_too_little_memory_is_refused(large: Family) -> None:
    least = refused(large)
    # The output, 256 columns of three inputs and one of them once more, a survey, and chunks.
    assert 12.3e6 + 4.2e6 + 4 * MIB < least * MIB < 12.3e6 + 6.4e6 + 10 * MIB
    assert (
        dry_run(as_config(large.config), None, MergeOptions(max_memory=least * MIB)).problems == ()
    )


def test_what_is_planned_stays_within_the_budget(large: Family) -> None:
    with open_source(str(large.base)) as one, open_source(str(large.target(1))) as other:
        sources = {str(large.base): one, str(large.target(1)): other, str(large.target(2)): other}
        jobs = make_plan(as_config(large.config), sources, shard_size=1 << 30).jobs
        needed, least = ColumnMemory.of(jobs), memory_floor(jobs)
        assert needed.output == 2048 * 3000 * 2
        assert needed.least == 2 * 400_001 * 8 + 192 > 256 * 2048 * 8
        for budget in (least, least + 1, 2 * least, 64 * MIB, 1 << 30):
            for threads in (1, 2, 64):
                planned = plan_memory(jobs, budget, threads)
                assert planned.total <= budget
                assert planned.output >= needed.output and planned.survey >= planned.floor
                assert planned.read >= needed.least
        # A slab takes what is left, but no more than gains anything.
        assert plan_memory(jobs, 1 << 30, 1).read == needed.most == 2048 * 2048 * 8 + 192
        assert ColumnMemory.of([]) == ColumnMemory(0, 0, 0, 0)


@pytest.mark.serial
def test_the_least_memory_suffices(large: Family) -> None:
    merge(large, "free", overwrite=True)
    least = refused(large) * MIB
    code, err = limited(large, "limited", least, "cached", least)
    assert code == 0, err
    assert weights(large.home / "limited") == weights(large.home / "free")
    code, err = limited(large, "more", 4 * least, "cached", least)
    assert code == 1 and "lower --max-memory" in err
