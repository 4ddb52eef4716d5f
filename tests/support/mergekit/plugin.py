"""`test_mergekit_suite.py` copies this file to mergekit's tests as conftest.py: they use the kernels, and count."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fuseo1_kernels.integrations import mergekit as kernels


def pytest_configure() -> None:
    kernels.install()


def pytest_sessionfinish(session: pytest.Session) -> None:
    done = kernels.counts()
    left = [[method, reason, n] for (method, reason), n in done.left.items()]
    Path(os.environ["FUSEO1_COUNTS"]).write_text(
        json.dumps({"merged": done.merged, "left": left}), encoding="utf-8"
    )
