"""Disks that are full and file systems that cannot be written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from support.checkpoint_files import tree
from support.interrupted import (
    partial_of,
    undisturbed,
)
from support.models import Family, make_family
from support.mounts import in_mount
from support.processes import one_error

# argv: the mount, the config, a place outside of it, what is to happen, after how many tensors
STEPS = """
import json, os, shutil, subprocess, sys
from pathlib import Path
from fuseo1_kernels.cli import merge
from fuseo1_kernels.checkpoint.journal import Journal
from fuseo1_kernels.engine.tuning import Tuning

place, config, outside, how, after = Path(sys.argv[1]), sys.argv[2], *sys.argv[3:5], int(sys.argv[5])
out, hog, codes = place / "merged", place / "hog", []
real, calls, tuning = Journal.add, [], Tuning(batch=1)

def add(self, tensors):
    real(self, tensors)
    calls.append(tensors)
    if len(calls) == after:
        if how == "read-only":
            raise KeyboardInterrupt
        with open(hog, "wb", buffering=0) as stream:
            try:
                while stream.write(bytes(4096)):
                    pass
            except OSError:
                pass

def step(*command):
    if command:
        subprocess.run(command, check=True)
    code = merge.main([config, str(out), "--json", "--quiet", "--threads", "1"], tuning=tuning)
    codes.append([code, out.exists()])
    print(file=sys.stderr)

Journal.add = add
if how == "sparse":  # as where files share blocks until they are written
    os.posix_fallocate = lambda fd, offset, size: os.ftruncate(fd, size)
if how == "read-only":
    step("mount", "-o", "remount,ro", place)
    step("mount", "-o", "remount,rw", place)
    step("mount", "-o", "remount,ro", place)
    step("mount", "-o", "remount,rw", place)
else:
    step()
    step("rm", hog)
assert os.listdir(place) == ["merged"], os.listdir(place)
shutil.copytree(out, outside)
print(json.dumps(codes))
"""


def in_steps(
    family: Family, options: str, how: str, after: int
) -> tuple[list[Any], list[str], int]:
    """(code and whether OUT exists, per run; messages, per run; tensors resumed by the last)."""
    argv = (family.config, family.home / "copied", how, after)
    place = family.home / "place"
    ran = in_mount(place, options, sys.executable, "-c", STEPS, place, *argv)
    assert ran.code == 0, ran
    *_, said, codes = ran.out.splitlines()
    assert tree(family.home / "copied") == undisturbed(family, "--threads", "1")
    return json.loads(codes), ran.err.split("\n\n"), json.loads(said)["resumed"]


@pytest.mark.parametrize(
    ("how", "after", "word"),
    [
        ("sparse", 3, "writing tensor"),
        ("reserved", 3, "the journal of the merge cannot be written"),
        ("reserved", 39, "cannot be written"),
    ],
)
def test_a_disk_that_fills_up(how: str, after: int, word: str, tmp_path: Path) -> None:
    """Reserved space is the shards' alone; the journal and the small files need more."""
    family = make_family(tmp_path)
    codes, messages, resumed = in_steps(family, "size=1m", how, after)
    assert codes == [[1, False], [0, True]]
    one_error(1, messages[0], word, "No space left on device", "the same command goes on")
    assert after <= resumed < 39 + (after == 39)


def test_a_file_system_that_cannot_be_written(tmp_path: Path) -> None:
    family = make_family(tmp_path)
    codes, messages, resumed = in_steps(family, "size=1m", "read-only", 3)
    assert codes == [[1, False], [130, False], [1, False], [0, True]]
    one_error(1, messages[0], tmp_path / "place" / "merged", "Read-only file system")
    one_error(1, messages[2], partial_of(tmp_path / "place" / "merged"), "Read-only file system")
    assert resumed == 3
