"""Merges on simulated GPUs: models, and short ways to merge them."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from fuseo1_kernels import MergeError, MergeResult
from support.engine_runs import MIB, merge
from support.fake_gpu import COPIES_IN, COPIES_OUT, KERNELS, FakeDevice, install
from support.interrupted import partial_of
from support.models import Family, weights

#: Streams that run ahead of the lazy ones, and how often any of them does something unasked.
SCHEDULES: dict[str, dict[str, Any]] = {
    "lazy": {},
    "copies in ahead": {"eager": [COPIES_IN]},
    "kernels ahead": {"eager": [COPIES_IN, KERNELS]},
    "copies out ahead": {"eager": [COPIES_OUT]},
    "at random": {"chance": 0.3},
}


def on_gpus(
    family: Family, *devices: FakeDevice, kernels: Any = None, **options: Any
) -> MergeResult:
    with pytest.MonkeyPatch.context() as patch:
        install(patch, *devices, kernels=kernels)
        names = ",".join(device.name for device in devices)
        result = merge(family, "gpu", device=names, overwrite=True, **options)
    for device in devices:
        assert device.closed == 1
    assert not [t for t in threading.enumerate() if t.name.startswith("fuseo1")]
    return result


def same(family: Family) -> bool:
    return weights(family.home / "gpu") == weights(family.home / "cpu")


def refusals(family: Family) -> list[str]:
    """Return the errors of the CPU and of a GPU for a merge that both refuse; neither leaves any output."""
    said = []
    for device in ("cpu", "cuda"):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(MergeError) as caught:
            install(patch, FakeDevice())
            merge(family, "refused", device=device)
        assert not list(family.home.glob("refused*"))
        said.append(str(caught.value))
    return said


def checksums(model: Path) -> list[Any]:
    """Return the checksum file's entries for the weights; those for small files depend on the directory's name."""
    said = json.loads((model / "fuseo1_checksums.json").read_text())
    return [said[key] for key in ("merge", "options", "shards", "tensors")]


def noticed(family: Family, device: FakeDevice) -> bool:
    """Whether the merge fails or gives other bytes: what is not there yet can look like NaN."""
    try:
        on_gpus(family, device, threads=2, max_gpu_memory=8 * MIB)
    except (MergeError, ValueError):
        # No later merge may continue a wrong one.
        shutil.rmtree(partial_of(family.home / "gpu"), ignore_errors=True)
        return True
    return not same(family)
