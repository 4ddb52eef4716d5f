"""Fixtures of the tests of merges on simulated GPUs."""

from __future__ import annotations

import pytest

from support.engine_runs import merge
from support.gpu.runs import mixed_family, use_small_slots
from support.method_cases import CASES
from support.models import Family


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Models for SCE, of 5 MB and more, and their merge by the CPU in `cpu`."""
    return mixed_family(tmp_path_factory.mktemp("mixed"))


@pytest.fixture
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_slots(monkeypatch)


@pytest.fixture
def on_cpu(request: pytest.FixtureRequest, mixed: Family, mixed_dtypes: Family) -> Family:
    """A merge by the case that is asked for, done by the CPU in `cpu`; by SCE it is `mixed`."""
    if request.param == "sce":
        return mixed
    CASES[request.param].configure(mixed_dtypes)
    merge(mixed_dtypes, "cpu", overwrite=True, resume=False)
    return mixed_dtypes
