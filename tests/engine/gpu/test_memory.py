"""How merges on GPUs divide the memory of both sides: within the limits, and what does not fit on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fuseo1_kernels import MergeError
from fuseo1_kernels.engine.gpu import memory
from support.engine_runs import MIB, Told, merge
from support.fake_gpu import COPIES_IN, FakeDevice, install
from support.gpu.runs import on_gpus, same
from support.models import Family, make_family, tuned
from support.tuning import tune


@pytest.mark.usefixtures("small_slots")
@pytest.mark.parametrize("max_memory", [3 * MIB, 20 * MIB, 300 * MIB])
@pytest.mark.parametrize("gpus", [1, 2])
def test_memory_is_bounded(
    gpus: int, max_memory: int, mixed: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(monkeypatch, slot=8 * MIB)
    devices = [FakeDevice(number) for number in range(gpus)]
    limit = 12 * MIB + 7  # no multiple of what kernels want
    on_gpus(mixed, *devices, threads=4, max_memory=max_memory, max_gpu_memory=limit)
    assert same(mixed)
    # Each worker has a buffer besides, to read back what an earlier run wrote.
    assert 0 < sum(sum(device.pinned) for device in devices) < max_memory
    for device in devices:
        assert device.allocated == [max(device.allocated)] and device.allocated[0] <= limit
        assert all(nbytes & (nbytes - 1) == 0 for nbytes in device.pinned)


def test_slots_of_the_usual_size(mixed: Family) -> None:
    """A tensor in a chunk, and many in one."""
    device = FakeDevice()
    on_gpus(mixed, device, threads=2)
    assert same(mixed)
    copies = len(device.streams[COPIES_IN].operations)
    assert copies < len(mixed.states[0]) / 3


def test_a_quarter_of_the_free_memory_is_the_default(mixed: Family) -> None:
    device = FakeDevice(free=44 * MIB)
    on_gpus(mixed, device)
    assert same(mixed)
    assert 8 * MIB < sum(device.allocated) <= 11 * MIB


def test_a_small_merge_reserves_little(tmp_path: Path) -> None:
    family = make_family(tmp_path)
    merge(family, "cpu")
    device = FakeDevice()
    on_gpus(family, device)
    assert same(family)
    assert sum(device.allocated) < MIB


@pytest.mark.usefixtures("small_slots")
def test_what_does_not_fit_goes_to_the_cpu(mixed: Family) -> None:
    """The two large ones need 5 MiB of inputs and output, and what their surveys take."""
    device = FakeDevice(eager=[COPIES_IN])
    limits = {"max_gpu_memory": 4 * MIB, "max_memory": 40 * MIB}
    progress = Told()
    result = on_gpus(mixed, device, threads=3, progress=progress, **limits)
    assert same(mixed) and progress.advanced == progress.total > 0 and progress.closed == 1
    assert device.fuses == len(mixed.states[0]) - 2
    assert result.notes == (
        "2 tensors merged on the CPU: each needs more than 4 MiB of a GPU's memory (--max-gpu-memory)",
    )
    assert sum(device.allocated) <= 4 * MIB
    # The CPU has half of what there is.
    assert sum(device.pinned) <= 20 * MIB


def test_nothing_fits(mixed: Family) -> None:
    device = FakeDevice()
    result = on_gpus(mixed, device, max_gpu_memory=1)
    assert same(mixed)
    assert device.fuses == 0 and device.pinned == []
    assert result.notes[0].startswith(f"{len(mixed.states[0])} tensors merged on the CPU")


def test_more_targets_than_the_kernels_take(tmp_path: Path) -> None:
    base = {"a": torch.linspace(-1, 1, 1000), "b": torch.linspace(-1, 1, 500)}
    family = make_family(tmp_path, [base, *(tuned(base, i + 1) for i in range(5))])
    merge(family, "cpu")
    result = on_gpus(family, FakeDevice())
    assert same(family)
    assert result.notes == (
        "2 tensors merged on the CPU: the cuda backend takes at most 4 targets",
    )


def test_too_little_memory_is_said(mixed: Family) -> None:
    for options, message in (
        ({"max_memory": 300 << 10}, "--max-memory 1 MiB is too little to feed 1 GPU; the least is"),
        ({"max_memory": MIB, "max_gpu_memory": MIB}, "merged on the CPU; the least is"),
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(MergeError, match=message):
            install(patch, FakeDevice())
            merge(mixed, "refused", device="cuda", **options)
        assert not (mixed.home / "refused").exists()


def test_every_gpu_has_a_reader() -> None:
    sizes = [
        memory._context_size(t, g, 1 << 30, 1, 1, 1) for t, g in ((1, 1), (1, 4), (16, 4), (64, 1))
    ]
    assert [size.readers for size in sizes] == [1, 1, 4, 8]
    assert [size.workers for size in sizes] == [2, 2, 5, 6]
