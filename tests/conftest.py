"""Markers and what they mean, fixtures that many tests share, and how the tests are dealt to two processes."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

from support.tensors import BACKENDS, CPUS, instruction_set, require_isa

if TYPE_CHECKING:
    from pathlib import Path

    from support.forked import Forks
    from support.interrupted import Tree
    from support.models import Family

# torch's threads wait for each other by spinning. Beside a second test process every such wait costs a time slice, and
# the reference backend takes ten times as long. The second line is for processes that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

try:
    from hypothesis import settings
except ImportError:  # where GPUs are tested it may not be there; what needs it imports it
    pass
else:
    # One run of the tests is like the next, whatever the machine's speed.
    settings.register_profile("fuseo1", derandomize=True, deadline=None, print_blob=True)
    settings.load_profile("fuseo1")

# What is imported and collected stays. The garbage collector, which would go through it time and again, comes later; at
# the end it has all back, or modules in C++ say that they leak.
gc.disable()
atexit.register(gc.unfreeze)

SYNC = os.fsync

MARKERS = {
    "slow": "not in the fast run: whole products of many axes, many kills, compilers, more than 2^31 elements (5 GB)",
    "gpu": "needs a GPU",
    "toolchain": "needs a C++ compiler, nm, or what comes with CUDA (nvcc, cuobjdump) or Triton (ptxas)",
    "peer": "needs mergekit, PEFT or transformers",
    "serial": "measures memory or time: no other test of this mark runs beside it",
}


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist's --dist loadgroup: a file's tests, and all serial ones, run in one process."""
    for item in items:
        group = "serial" if item.get_closest_marker("serial") else str(item.path)
        if item.config.pluginmanager.hasplugin("xdist"):
            item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Files of tests need not outlive the machine: a merge makes twenty syncs, each of which waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _fd: None)
        yield


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs are made: only what is on the disk can be taken out of the page cache."""
    monkeypatch.setattr(os, "fsync", SYNC)


def _with_isa(isa: str) -> Iterator[str]:
    require_isa(isa)
    with instruction_set(isa):
        yield "cpu"


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of every backend, the cpu one with each instruction set."""
    if request.param == "reference":
        yield "reference"
    else:
        yield from _with_isa(request.param.removeprefix("cpu-"))


@pytest.fixture(params=CPUS)
def cpu(request: pytest.FixtureRequest) -> Iterator[str]:
    """The cpu backend with each instruction set."""
    yield from _with_isa(request.param.removeprefix("cpu-"))


# --- models; what these import is not there wherever kernels are tested ---


@pytest.fixture
def family(tmp_path: Path) -> Family:
    """A tiny Qwen2 and two models that were tuned from it."""
    from support.models import make_family

    return make_family(tmp_path)


@pytest.fixture(scope="session")
def oversized(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Models with tensors that do not fit into a worker's share of the least memory."""
    from support.engine_runs import oversized_family

    return oversized_family(tmp_path_factory.mktemp("oversized"))


@pytest.fixture(scope="session")
def mixed_dtypes(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A model in bf16 with three tunes in all dtypes, for every method."""
    from support.method_cases import mixed_family

    return mixed_family(tmp_path_factory.mktemp("methods"))


# --- merges that are cut short ---


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Starts merges in processes of their own."""
    from support.forked import forking

    with forking(tmp_path_factory.mktemp("forks")) as forks:
        yield forks


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A model of six small tensors and two that were tuned from it."""
    from support.interrupted import small_family

    return small_family(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def expected(small: Family) -> Tree:
    """Return the files that an undisturbed merge of `small` writes."""
    from support.interrupted import ARGV, undisturbed

    return undisturbed(small, *ARGV)
