"""Fixtures: every backend and instruction set, and the tests that run only when asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from tensors import ISAS, instruction_set

from fuseo1_kernels import _cpu

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
