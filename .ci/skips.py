"""Fail where a test was skipped for a reason that allowed_skips does not have, or that is not true here.

python .ci/skips.py REPORT.xml ...    # what pytest --junit-xml wrote
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from xml.etree import ElementTree

ALLOWED = Path(__file__).with_name("allowed_skips")


def _gpus() -> int:
    return len([*Path("/dev").glob("nvidia[0-9]*")])


def _cpu_has(flag: str) -> bool:
    return re.search(rf"^flags\b.*\b{flag}\b", Path("/proc/cpuinfo").read_text(), re.M) is not None


def _may_mount() -> bool:
    command = "mount -t tmpfs tmpfs /mnt"
    try:
        ran = subprocess.run(["unshare", "--mount", "sh", "-c", command], capture_output=True)
    except FileNotFoundError:
        return False
    return ran.returncode == 0


#: What may be true of a machine.
CONDITIONS: dict[str, Callable[[], bool]] = {
    "no-gpu": lambda: _gpus() == 0,
    "gpu": lambda: _gpus() > 0,
    "one-gpu": lambda: _gpus() == 1,
    "no-nvcc": lambda: shutil.which("nvcc") is None,
    "root": lambda: os.geteuid() == 0,
    "no-mounts": lambda: not _may_mount(),
    "no-avx2": lambda: not _cpu_has("avx2"),
    "no-avx512": lambda: not all(map(_cpu_has, ("avx512f", "avx512bw", "avx512dq", "avx512vl"))),
    "not-x86-64": lambda: platform.machine() != "x86_64",
}


def read_allowed(text: str) -> list[tuple[str, re.Pattern[str]]]:
    """Return (condition, pattern) of every line that is no comment."""
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and line[0] != "#"]
    return [(condition, re.compile(pattern)) for condition, pattern in lines]


def skips(report: Path) -> Counter[str]:
    """Return how often each reason was given in a report; expected failures are no skips."""
    found = ElementTree.parse(report).iter("skipped")
    return Counter(e.get("message", "") for e in found if e.get("type") != "pytest.xfail")


def refused(
    reasons: Iterable[str], allowed: Iterable[tuple[str, re.Pattern[str]]], true_here: Iterable[str]
) -> list[str]:
    """Return the reasons that no line allows on a machine of which the conditions `true_here` hold."""
    here = [pattern for condition, pattern in allowed if condition in set(true_here)]
    return [r for r in reasons if not any(pattern.fullmatch(r) for pattern in here)]


def main(reports: list[str]) -> int:
    counted: Counter[str] = Counter()
    for report in reports:
        counted += skips(Path(report))
    true_here = [name for name, holds in CONDITIONS.items() if holds()]
    wrong = refused(counted, read_allowed(ALLOWED.read_text()), true_here)
    print(f"skips: {counted.total()}, on a machine of which hold: {', '.join(true_here)}")
    for reason, count in counted.most_common():
        print(f"  {'NOT ALLOWED' if reason in wrong else 'allowed':<12} {count:5}  {reason[:150]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
