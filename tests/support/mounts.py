"""File systems in memory that only one test's command sees."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.processes import Run, environment

_MOUNT = 'mount -t tmpfs -o "$1" tmpfs "$2" || exit 77; shift 2; exec "$@"'


def in_mount(place: Path, options: str, *argv: object) -> Run:
    """Run ARGV where a file system with mount's `options` is at `place`; skip where none may be mounted."""
    place.mkdir(exist_ok=True)
    words = ["unshare", "--mount", "sh", "-c", _MOUNT, "sh", options, str(place), *map(str, argv)]
    try:
        ran = subprocess.run(
            words, env=environment(), capture_output=True, text=True, check=False, timeout=120
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if ran.returncode == 77 or ran.stderr.startswith("unshare: "):
        pytest.skip("no file system may be mounted here")
    return Run(ran.returncode, ran.stdout, ran.stderr)
