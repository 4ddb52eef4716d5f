"""Fixtures (every backend and instruction set, merges to be cut short), and the tests that run only when asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from fuseo1_kernels.backends import _cpu
from support.tensors import ISAS, instruction_set

if TYPE_CHECKING:
    from support.forked import Forks
    from support.interrupted import Tree
    from support.models import Family

try:
    from hypothesis import settings
except ImportError:  # where GPUs are tested it may not be there; what needs it imports it
    pass
else:
    # One run of the tests is like the next, whatever the machine's speed.
    settings.register_profile("fuseo1", derandomize=True, deadline=None, print_blob=True)
    settings.load_profile("fuseo1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--large", action="store_true", help="also run the tests that need 5 GB (or FUSEO1_LARGE=1)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "large: needs 5 GB of memory; run with --large")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--large") or os.environ.get("FUSEO1_LARGE") == "1":
        return
    large = [item for item in items if item.get_closest_marker("large")]
    if large:
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item not in large]


def _with_isa(isa: str) -> Iterator[str]:
    if isa not in _cpu.available_isas():
        pytest.skip(f"this machine or build has no {isa} kernels")
    with instruction_set(isa):
        yield "cpu"


@pytest.fixture(params=["reference", *(f"cpu-{isa}" for isa in ISAS)])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of every backend, the cpu one with each instruction set."""
    if request.param == "reference":
        yield "reference"
    else:
        yield from _with_isa(request.param.removeprefix("cpu-"))


@pytest.fixture(params=[f"cpu-{isa}" for isa in ISAS])
def cpu(request: pytest.FixtureRequest) -> Iterator[str]:
    """The cpu backend with each instruction set."""
    yield from _with_isa(request.param.removeprefix("cpu-"))


# --- merges that are cut short: what they import is not there wherever kernels are tested ---


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
    """What merging `small` gives that nothing disturbs."""
    from support.interrupted import ARGV, undisturbed

    return undisturbed(small, *ARGV)
