"""Whole merges on GPUs that only do what they must, or too much: the same bytes as on the CPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels import MergeError
from fuseo1_kernels.engine.gpu.layout import Layout
from fuseo1_kernels.engine.gpu.regions import Regions
from fuseo1_kernels.engine.gpu.worker import GpuWorker
from support.emulated import load_emulated
from support.engine_runs import MIB, merge, spoil
from support.fake_gpu import COPIES_IN, COPIES_OUT, KERNELS, Enqueued, FakeDevice, install
from support.gpu.runs import SCHEDULES, noticed, on_gpus, same
from support.models import Family, make_family, states_of, tuned, weights
from support.processes import done, merge_json, run
from support.tensors import BF16
from support.tuning import tune
from support.watching import watch

pytestmark = pytest.mark.usefixtures("small_slots")

# --- the same bytes ----------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("threads", [1, 4])
def test_the_bytes_are_the_cpus(threads: int, schedule: str, mixed: Family) -> None:
    device = FakeDevice(**SCHEDULES[schedule])
    result = on_gpus(mixed, device, threads=threads, max_gpu_memory=14 * MIB)
    assert same(mixed)
    jobs = len(mixed.states[0])
    assert (device.surveys, device.fuses) == (jobs, jobs)
    assert result.backend == "cuda: fake GPU (cuda:0)"
    assert result.notes == ()
    # Once each: what is surveyed is in the GPU's memory when it is fused.
    assert result.bytes_read == sum(t.nbytes for s in mixed.states for t in s.values())
    assert result.bytes_written == 2 * result.parameters


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("on_cpu", ["sce", "ties, rescaled"], indirect=True)
def test_several_gpus(schedule: str, on_cpu: Family) -> None:
    devices = [FakeDevice(number, **SCHEDULES[schedule]) for number in range(3)]
    on_gpus(on_cpu, *devices, threads=3)
    assert same(on_cpu) and all(device.fuses for device in devices)
    assert sum(device.fuses for device in devices) == len(on_cpu.states[0])


@pytest.mark.toolchain
def test_the_cuda_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their own sources, run by the host: in memory that is the engine's, with surveys that were kept and new ones."""
    shapes = {"a": (301, 333), "b": (5,), "empty": (0,), "c": (70_001,)}
    family = make_family(tmp_path, states_of(shapes, BF16, BF16, BF16))
    cuda = load_emulated()
    install(monkeypatch, FakeDevice(), kernels=Enqueued(cuda))
    for number, (topk, variant) in enumerate(((1.0, "fuseo1"), (0.2, "mergekit"), (0.5, "fuseo1"))):
        family.configure(parameters={"select_topk": topk, "variant": variant})
        expected = merge(family, f"cpu{number}")
        cache = {"survey_cache": tmp_path / "surveys", "survey_topk": (0.5,)}
        found = merge(family, f"gpu{number}", device="cuda", **cache)
        assert weights(tmp_path / f"gpu{number}") == weights(tmp_path / f"cpu{number}")
        assert found.energy_share == expected.energy_share


# --- every wait is needed ----------------------------------------------------------------

RULES = ("ties, rescaled", "linear")  # with surveys and without
BETWEEN = [(KERNELS, COPIES_IN), (COPIES_OUT, KERNELS)]


@pytest.mark.parametrize(
    ("on_cpu", "deaf"),
    [
        *(("sce", deaf) for deaf in BETWEEN),
        *((name, (copies,)) for name in ("sce", *RULES) for copies in (COPIES_IN, COPIES_OUT)),
    ],
    indirect=["on_cpu"],
)
def test_a_wait_that_is_left_out_is_noticed(deaf: tuple[int, ...], on_cpu: Family) -> None:
    """Kernels wait for copies, copies for kernels, and the host for both before it touches their slots."""
    assert noticed(on_cpu, FakeDevice(deaf=[deaf]))
    assert not noticed(on_cpu, FakeDevice())


@pytest.mark.parametrize("on_cpu", ["sce", *RULES], indirect=True)
def test_copies_wait_for_what_had_the_memory_before(on_cpu: Family) -> None:
    """It is at work in the kernels' stream, in which the memory is allocated."""
    assert noticed(on_cpu, FakeDevice(eager=[COPIES_IN], deaf=[(COPIES_IN, KERNELS)]))
    assert not noticed(on_cpu, FakeDevice(eager=[COPIES_IN]))


@pytest.mark.parametrize(
    ("on_cpu", "step"),
    [("sce", "_enqueue_kernels"), *((name, "_merge_by_rule") for name in RULES)],
    indirect=["on_cpu"],
)
def test_a_region_that_is_given_to_others_too_early_is_noticed(
    step: str, on_cpu: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the kernels ran, or outputs were copied, which the copies for another tensor do not wait for."""
    whole, give = getattr(GpuWorker, step), Regions.give

    def hasty(self: GpuWorker, layout: Layout, region: int, copied: Any) -> Any:
        found = whole(self, layout, region, copied)
        self._gpu.regions.give(region)
        time.sleep(0.02)  # others come to it, and this one is late with its own copies
        return found

    monkeypatch.setattr(GpuWorker, step, hasty)
    monkeypatch.setattr(
        Regions, "give", lambda self, start: give(self, start) if start in self._taken else None
    )
    if step == "_merge_by_rule":
        tune(monkeypatch, batch=1)
    assert noticed(on_cpu, FakeDevice(eager=[COPIES_IN]))


# --- what the CPU engine guarantees too --------------------------------------------------


def test_surveys_are_kept_and_found(mixed: Family, tmp_path: Path) -> None:
    """Those of a CPU by a GPU, and the other way round."""
    cache = {"survey_cache": tmp_path / "surveys"}
    jobs = len(mixed.states[0])
    first = FakeDevice()
    on_gpus(mixed, first, survey_topk=(0.7, 0.3), **cache)
    assert same(mixed) and first.surveys == 2 * jobs
    second = FakeDevice(eager=[COPIES_IN])
    result = on_gpus(mixed, second, **cache)
    assert same(mixed) and (second.surveys, second.fuses) == (0, jobs)
    kept = merge(mixed, "cpu again", **cache)
    assert weights(mixed.home / "cpu again") == weights(mixed.home / "cpu")
    assert result.energy_share == kept.energy_share
    assert kept.bytes_read == result.bytes_read  # once: there was no survey

    third = FakeDevice()
    on_gpus(mixed, third, survey_topk=(0.9,), **cache)
    assert same(mixed) and (third.surveys, third.fuses) == (jobs, jobs)


def test_surveys_for_later_that_need_more_memory(tmp_path: Path) -> None:
    """A survey that selects everything has no candidates; surveys at other values have."""
    family = make_family(tmp_path)
    merge(family, "cpu")
    device = FakeDevice()
    cache = {"survey_cache": tmp_path / "surveys", "survey_topk": (0.5,)}
    on_gpus(family, device, **cache)
    assert same(family) and device.surveys == 2 * len(family.states[0])


def test_a_kept_survey_is_heeded_before_anything_is_read(tmp_path: Path) -> None:
    base = {"w": torch.linspace(-1, 1, 90_000).to(BF16)}
    family = make_family(tmp_path, [base, tuned(base, 1), tuned(base, 2)])
    spoil(family, 1, "w", {7: float("nan")})
    cache = {"survey_cache": tmp_path / "surveys"}
    on_gpus(family, FakeDevice(), nonfinite="propagate", **cache)
    device = FakeDevice()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MergeError, match="1 NaN"):
        install(patch, device)
        merge(family, "refused", device="cuda", **cache)
    assert not device.pinned


@pytest.mark.parametrize("torch_bin", [False, True])
def test_inputs_that_must_not_stay_in_the_page_cache(
    torch_bin: bool, mixed: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read ahead, and, where there is no room for that, by the readers of a GPU themselves."""
    from fuseo1_kernels.checkpoint.source import Source

    monkeypatch.setattr(Source, "is_cached", lambda self, info: False)
    dropped: set[str] = set()
    watch(monkeypatch, Source, "drop", lambda source, info, *part: dropped.add(info.name))
    family = make_family(tmp_path, mixed.states, torch_bin=torch_bin, shards=2)
    family.configure(parameters={"select_topk": 0.3, "variant": "mergekit"}, dtype="bfloat16")
    merge(family, "cpu")
    assert not dropped
    on_gpus(family, FakeDevice())
    assert same(family) and not dropped
    tune(monkeypatch, page_cache=0)
    on_gpus(family, FakeDevice())
    assert same(family) and dropped == {n for n, t in mixed.states[0].items() if t.numel()}


# --- the command line --------------------------------------------------------------------


def test_the_command_line(mixed: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = install(monkeypatch, FakeDevice(0), FakeDevice(1))
    for number, (options, used) in enumerate(
        (
            (["--cuda"], {0}),
            (["--backend", "cuda"], {0}),
            (["--device", "cuda:1"], {1}),
            (["--device", "cuda:0,cuda:1", "--max-gpu-memory", "14MiB"], {0, 1}),
        )
    ):
        before = [device.fuses for device in devices]
        out = mixed.home / f"command{number}"
        said = merge_json(mixed.config, out, *options)
        assert said["backend"].startswith("cuda: fake GPU")
        assert weights(out) == weights(mixed.home / "cpu")
        changed = {i for i, device in enumerate(devices) if device.fuses > before[i]}
        assert changed == used
    assert sum(devices[0].allocated[-1:]) <= 14 * MIB


def test_dry_run(mixed: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    [device] = install(monkeypatch, FakeDevice())
    argv = [mixed.config, "--dry-run", "--cuda", "--max-gpu-memory", "4MiB"]
    said = done(*argv, "--max-memory", "40MiB").out
    assert "note: 2 tensors merged on the CPU: each needs more than 4 MiB" in said
    memory = next(line for line in said.splitlines() if line.startswith("memory"))
    assert 0 < int(memory.split()[3]) <= 40
    assert not device.allocated
    assert run(*argv, "--max-memory", "2MiB").code == 1
