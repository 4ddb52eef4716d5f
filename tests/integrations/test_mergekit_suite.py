"""mergekit 0.1.5's own tests, from its source distribution, with the kernels inside."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

from support.paths import ROOT, TESTS

pytestmark = [pytest.mark.peer, pytest.mark.slow]

pytest.importorskip("mergekit")

HERE = TESTS
SUPPORTED = "0.1.5"
SDIST = f"mergekit=={SUPPORTED} --hash=sha256:caa51dbbfa493bcd62218d17f2bc7bb1c7a2a2e4baf4e2f34a29d73c66c594aa\n"

#: The suite merges with these methods without gradients, in a dtype that the kernels have.
MERGED = (
    *("arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della"),
    *("della_linear", "karcher", "linear"),
    *("model_stock", "multislerp", "nearswap", "nuslerp", "passthrough", "sce", "slerp"),
    *("ram", "ramplus_tl", "task_arithmetic", "ties"),
)
REASONS = (
    "nothing to compute|gradients are recorded|float64|not a method of the kernels"
    "|.*weights.* sum to 0.*|.*epsilon.*"
)

#: How many pass without the kernels where there is no GPU; with one some run that are skipped there.
PASS = 518


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with mergekit's `tests`, and what they import that is not distributed."""
    if version("mergekit") != SUPPORTED:
        pytest.skip(f"mergekit {version('mergekit')} is installed, not {SUPPORTED}")
    root = tmp_path_factory.mktemp("mergekit")
    (root / "sdist.txt").write_text(SDIST)
    arguments = ("--no-deps", "--no-binary", "mergekit", "--dest", root, "-r", root / "sdist.txt")
    fetched = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if fetched.returncode:
        pytest.skip(f"pip cannot fetch mergekit's source distribution: {fetched.stderr[-500:]}")
    top = f"mergekit-{SUPPORTED}/tests/"
    with tarfile.open(root / f"mergekit-{SUPPORTED}.tar.gz") as archive:
        for member in archive.getmembers():
            if member.isfile() and member.name.startswith(top):
                member.name = "tests/" + member.name.removeprefix(top)
                archive.extract(member, root, filter="data")
    shutil.copy(HERE / "support/mergekit/common.py", root / "tests/common.py")
    return root


def passed(suite: Path, **environment: str) -> int:
    """How many of mergekit's tests pass; all that are not skipped must."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=suite,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    found = re.search(r"(\d+) passed", ran.stdout)
    assert found, ran.stdout
    return int(found[1])


def test_mergekits_tests_pass_without_the_kernels(suite: Path) -> None:
    assert passed(suite) >= PASS


def test_mergekits_tests_pass_with_the_kernels_at_work(suite: Path) -> None:
    shutil.copy(HERE / "support/mergekit/plugin.py", suite / "conftest.py")
    assert passed(suite, FUSEO1_COUNTS=str(suite / "counts.json")) >= PASS
    done = json.loads((suite / "counts.json").read_text())
    assert min(done["merged"].get(method, 0) for method in MERGED) > 0, done["merged"]
    # mergekit does the other merges because the kernels do not take them, not because kernels failed.
    others = [row for row in done["left"] if not re.fullmatch(REASONS, row[1])]
    assert others == []
