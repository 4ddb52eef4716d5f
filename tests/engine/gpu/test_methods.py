"""Whole merges on simulated GPUs by every method: the same bytes as on the CPU, within the memory that was planned."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels import MergeError, MergeResult
from fuseo1_kernels.backends.contract import Divergences, Ranked
from fuseo1_kernels.engine.gpu.blocking import BlockingMerger
from fuseo1_kernels.engine.gpu.context import GpuContext
from fuseo1_kernels.engine.gpu.worker import GpuWorker
from support.emulated import load_emulated
from support.engine_runs import MIB, Told, merge
from support.fake_gpu import FakeDevice, FakeKernels, install
from support.gpu.runs import SCHEDULES, checksums, noticed, on_gpus, same
from support.interrupted import journaled
from support.method_cases import CASES, Case
from support.models import Family, State, make_family, weights
from support.pairwise import pairwise, sample
from support.peak import Measured
from support.processes import done, run
from support.tuning import tune
from support.watching import watch

pytestmark = pytest.mark.usefixtures("small_slots")

#: Every method but SCE, whose merges are engine/gpu/test_merges.py's; but not by columns, which are the CPU's.
OTHERS = {name: case for name, case in CASES.items() if case.method != "sce" and not case.on_cpu}
BY_ROW = CASES["model_stock, by row"]


@pytest.fixture
def family(mixed_dtypes: Family) -> Family:
    return mixed_dtypes


def merged_on_cpu(case: Case, family: Family) -> MergeResult:
    case.configure(family)
    return merge(family, "cpu", overwrite=True, resume=False)


# --- the same bytes ----------------------------------------------------------------------


@pairwise("order, name", ("lazy", "at random"), ("sce", *OTHERS), together=1)
def test_the_bytes_and_the_report_are_the_cpus(order: str, name: str, family: Family) -> None:
    case = CASES[name]
    expected = merged_on_cpu(case, family).as_dict()
    device, progress = FakeDevice(**SCHEDULES[order]), Told()
    result = on_gpus(family, device, threads=3, max_gpu_memory=3 * MIB // 2, progress=progress)
    assert same(family) and checksums(family.home / "gpu") == checksums(family.home / "cpu")
    assert device.fuses >= result.tensors
    differing = {key for key, value in result.as_dict().items() if expected[key] != value}
    assert {"out_dir", "backend"} <= differing <= {"out_dir", "backend", "seconds", "bytes_read"}
    assert progress.total == progress.advanced > 0
    # Once each, whatever was surveyed.
    read = sum(t.nbytes for state in case.states(family) for t in state.values())
    assert result.bytes_read == read and result.exact_path == 0
    assert sum(device.allocated) <= 3 * MIB // 2


@pytest.mark.toolchain
@pytest.mark.parametrize("name", sample(OTHERS, 9))
def test_the_cuda_kernels(name: str, family: Family) -> None:
    """Their own sources, run by the host."""
    case = OTHERS[name]
    expected = merged_on_cpu(case, family)
    device = FakeDevice()
    kernels = Measured(load_emulated(), device)
    result = on_gpus(family, device, kernels=kernels, threads=2)
    assert same(family) and result.exact_path == expected.exact_path
    assert result.notes == expected.notes and kernels.ops >= result.tensors
    # It is not more than needed; where nothing is surveyed, it would be if something were not finite.
    # And factors of rows, which a GPU is sent (of the 131 of the embedding), are on the host already.
    sent = 1024 if case.method == "arcee_fusion" else 0
    assert kernels.most == device.allocated[1] - sent or kernels.ops == result.tensors


def test_groups_of_empty_tensors(tmp_path: Path) -> None:
    base = {f"t{i}": torch.zeros(0, i) for i in range(3)}
    family = make_family(tmp_path, [base, base, base])
    for name in ("ties", "linear", "model_stock, by row"):
        case = CASES[name]
        Case(
            case.method, 2, case.base, shared={"weight": 1} if "weight" in case.values else {}
        ).configure(family)
        merge(family, "cpu", overwrite=True)
        on_gpus(family, FakeDevice())
        assert same(family)


# --- every wait is needed: more of them are in test_merges.py ------------------------------

BOTH = pytest.mark.parametrize("on_cpu", ["ties, rescaled", "linear"], indirect=True)


@BOTH
def test_ops_that_do_not_wait_for_copies_are_noticed(
    on_cpu: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = GpuWorker._merge_by_rule
    monkeypatch.setattr(
        GpuWorker, "_merge_by_rule", lambda self, layout, region, _: whole(self, layout, region, ())
    )
    assert noticed(on_cpu, FakeDevice())


@BOTH
def test_ops_that_do_not_take_turns_are_noticed(
    on_cpu: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory that they allocate is counted once."""
    make = GpuContext.__init__

    def careless(self: GpuContext, *arguments: Any) -> None:
        make(self, *arguments)
        self.enqueuing = nullcontext()  # type: ignore[assignment]

    monkeypatch.setattr(GpuContext, "__init__", careless)
    assert noticed(on_cpu, FakeDevice())


# --- memory, and what a backend lacks ----------------------------------------------------


def test_what_does_not_fit_goes_to_the_cpu(family: Family) -> None:
    """The vector, by 256 bytes: 924,672 are its inputs and output, 17,408 what a survey of it allocates."""
    merged_on_cpu(CASES["ties"], family)
    for limit, left in ((942_080, 0), (942_079, 1)):
        device = FakeDevice()
        result = on_gpus(family, device, max_gpu_memory=limit)
        assert same(family) and sum(device.allocated) <= limit
        assert device.fuses == result.tensors - left
        assert len(result.notes) == left


@pytest.mark.parametrize(
    ("name", "lack"), [("della", Ranked), ("arcee_fusion", Divergences)], ids=str
)
def test_what_a_backend_lacks_is_merged_by_the_cpu(
    name: str, lack: type, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is known before anything is read."""
    merged_on_cpu(CASES[name], family)
    device, kernels = FakeDevice(), FakeKernels(lack=(lack,))
    result = on_gpus(family, device, kernels=kernels)
    [note] = result.notes
    words = f"merged on the CPU: the fake kernels have no {lack.__name__}"
    assert same(family) and note.endswith(words) and device.surveys == 0
    install(monkeypatch, FakeDevice(), kernels=kernels)
    assert f"note: {note}\n" in done(family.config, "--dry-run", "--cuda").out


def by_column(states: list[State]) -> list[str]:
    """Names of the tensors that have columns."""
    return [name for name, t in states[0].items() if t.ndim > 1 and t.numel()]


@pytest.mark.parametrize("name", ["nuslerp, by column", "nuslerp, by column, no base"])
def test_columns_are_merged_by_the_cpu(
    name: str, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is the GPU's, to the same bytes."""
    merged_on_cpu(CASES[name], family)
    device, left = FakeDevice(), len(by_column(family.states))
    result = on_gpus(family, device, threads=3, max_gpu_memory=3 * MIB // 2)
    assert same(family) and checksums(family.home / "gpu") == checksums(family.home / "cpu")
    assert device.surveys == device.fuses == result.tensors - left > 0
    note = f"{left} tensors merged on the CPU: nothing is merged by columns on a GPU"
    assert result.notes == (note,)
    install(monkeypatch, FakeDevice())
    assert f"note: {note}\n" in done(family.config, "--dry-run", "--cuda").out


def test_columns_alone(tmp_path: Path) -> None:
    """Nothing is left to the GPU. Memory is the CPU's half."""
    base = {name: torch.rand(3000, 700) - 2 for name in ("a", "b")}
    family = make_family(tmp_path, [base, *({n: t + i for n, t in base.items()} for i in (1, 2))])
    merged_on_cpu(CASES["nuslerp, by column"], family)
    device = FakeDevice()
    result = on_gpus(family, device, max_memory=80 * MIB)
    assert same(family) and device.fuses == 0 and result.notes[0].startswith("2 tensors merged on")
    with pytest.raises(MergeError, match="too little for the tensors that are merged on the CPU"):
        on_gpus(family, FakeDevice(), max_memory=30 * MIB, resume=False)


# --- what the CPU engine guarantees too --------------------------------------------------


def test_surveys_are_kept_and_found(family: Family, tmp_path: Path) -> None:
    """Those of a GPU by another, and by the CPU; another weight needs none."""
    cache = {"survey_cache": tmp_path / "surveys"}
    merged_on_cpu(CASES["ties, rescaled"], family)
    first, second = FakeDevice(), FakeDevice()
    on_gpus(family, first, **cache)
    assert same(family) and first.surveys == 2 * len(family.states[0])
    Case("ties", 2, shared={"weight": 0.3, "density": 0.2, "rescale": True}).configure(family)
    result = on_gpus(family, second, **cache)
    assert (second.surveys, second.fuses) == (0, len(family.states[0]))
    kept = merge(family, "cpu", overwrite=True, **cache)
    assert same(family) and kept.bytes_read == result.bytes_read


def test_rows_have_surveys_that_are_not_kept(family: Family, tmp_path: Path) -> None:
    merged_on_cpu(BY_ROW, family)
    for _ in range(2):
        device = FakeDevice()
        on_gpus(family, device, survey_cache=tmp_path)
        assert same(family) and device.surveys == device.fuses > 131


@BOTH
def test_what_a_lost_gpu_began_the_cpu_ends(
    on_cpu: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = on_cpu
    whole, device, out = FakeDevice(), FakeDevice(), tmp_path / "merged"
    tune(monkeypatch, batch=1)  # every tensor by itself
    on_gpus(family, whole, threads=2)
    device.lost_at = whole.waits * 9 // 10
    with pytest.MonkeyPatch.context() as patch:
        install(patch, device)
        ran = run(family.config, out, "--cuda", "--quiet", "--threads", "2")
    said, kept = ran.err.splitlines()
    assert said == "fuseo1-merge: error: cuda:0: CUDA error: unspecified launch failure"
    assert ran.code == 1 and kept and not out.exists()
    assert done(family.config, out, "--quiet").err == ""
    assert weights(out) == weights(family.home / "cpu")


def test_a_merge_of_many_rows_stops_at_once(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding has 131, and only a vector comes before it; another worker may be about to have its turn."""
    BY_ROW.configure(family)
    stops: set[threading.Event] = set()
    watch(monkeypatch, BlockingMerger, "__init__", lambda *given: stops.add(given[2].stop))

    def stopping(*_: object) -> None:
        if device.fuses == 10:
            stops.pop().set()

    watch(monkeypatch, FakeKernels, "fuse", stopping)
    [device] = install(monkeypatch, FakeDevice())
    with pytest.raises(MergeError, match="the merge was stopped"):
        merge(family, "stopped", device="cuda", threads=1)
    assert device.fuses <= 12 and device.surveys <= 13
    assert journaled(family.home / "stopped") <= 1


def test_sce_waits_for_nothing(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    CASES["sce"].configure(family)
    monkeypatch.setattr(GpuWorker, "_merge_by_rule", None)
    monkeypatch.setattr(FakeKernels, "survey", None)
    merge(family, "cpu", overwrite=True, resume=False)
    device = FakeDevice()
    on_gpus(family, device)
    assert same(family) and len(device.allocated) == 1
