"""Folders in which something else stands where a file or a folder is expected: links, pipes, devices, modes.

Whatever it is, a command ends soon and in one message, or does what it does without it; nothing else is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from fuseo1_kernels.checkpoint.identity import FileIdentity
from fuseo1_kernels.checkpoint.records import encode_record
from fuseo1_kernels.cli import verify
from support.forked import Forks
from support.fuzzing import check_text, fuzz, time_limit
from support.interrupted import ARGV, partial_of, small_family
from support.models import Family, weights
from support.processes import merge_json, run

#: What is expected where; `merged` is OUT, of which an unfinished merge is there, and `done` a finished one.
PLACES = (
    "base",
    "base/config.json",
    "base/model.safetensors.index.json",
    "base/model-00001-of-00002.safetensors",
    "target1/config.json",
    "target1/model-00002-of-00002.safetensors",
    "base/tokenizer.json",
    "base/tokenizer_config.json",
    "results/merged",
    "results/merged.partial",
    "results/merged.partial/journal",
    "results/merged.partial/model",
    "results/merged.partial/model/model-00002-of-00004.safetensors",
    "results/merged.partial/model/config.json",
    "cache",
    "cache/surveys",
    "done",
    "done/README.md",
    "done/fuseo1_checksums.json",
    "done/model.safetensors.index.json",
    "done/model-00003-of-00004.safetensors",
)


def _outside(path: Path, home: Path) -> Path:
    """Move what is there to the user's own folder, which no command may change."""
    target = home / "mine" / f"{path.parent.name} {path.name}"
    if os.path.lexists(path):
        path.rename(target)
    elif not target.exists():
        target.write_bytes(b"mine")
    return target


def _socket(path: Path) -> None:
    there = os.getcwd()
    os.chdir(path.parent)  # the names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(there)


def _instead(make: Callable[[Path], object]) -> Callable[[Path, Path], None]:
    def change(path: Path, home: Path) -> None:
        _outside(path, home)
        make(path)

    return change


def _mode(mode: int) -> Callable[[Path, Path], None]:
    def change(path: Path, _home: Path) -> None:
        if path.exists():
            path.chmod(mode)

    return change


def _enormous(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def _hard_link(path: Path, home: Path) -> None:
    if path.is_file():
        os.link(path, home / "mine" / f"{path.parent.name} {path.name}")


KINDS: dict[str, Callable[[Path, Path], Any]] = {
    "nothing": _instead(lambda path: None),
    "an empty file": _instead(Path.touch),
    "an enormous file": _instead(_enormous),
    "a file": _instead(lambda path: path.write_bytes(b"mine")),
    "an empty folder": _instead(Path.mkdir),
    "a folder": _instead(lambda path: (path / "a" / "b").mkdir(parents=True)),
    "a pipe": _instead(os.mkfifo),
    "a socket": _instead(_socket),
    "a link to zeros": _instead(lambda path: path.symlink_to("/dev/zero")),
    "a link to nothing": _instead(lambda path: path.symlink_to("nothing")),
    "a link to itself": _instead(lambda path: path.symlink_to(path.name)),
    "a link to where it was moved": lambda path, home: path.symlink_to(_outside(path, home)),
    "a second name": _hard_link,
    "no rights": _mode(0),
    "all rights": _mode(0o777),
}


class Folders:
    """Three models, an unfinished merge of them, a finished one, and a cache, made anew for each example."""

    def __init__(self, family: Family, template: Path) -> None:
        self.family, self.home, self.template = family, family.home, template
        self.expected = weights(template / "done")

    def check(self, changes: Sequence[tuple[str, str]]) -> int:
        """Change the folders, run the commands, and look at what they said and did. Return the merge's exit code."""
        shutil.copytree(self.template, self.home, symlinks=True)
        self._continue()
        try:
            for place, kind in changes:
                path = self.home / place
                if path.parent.is_dir() and not path.parent.is_symlink():
                    KINDS[kind](path, self.home)
            mine = self._mine()
            with time_limit():
                self._merge("--dry-run")
                code = self._merge()
                assert verify.main([str(self.home / "done"), "--quiet", "--json"]) in (0, 1)
            assert self._mine() == mine
        finally:
            for folder, _, _ in os.walk(self.home):
                os.chmod(folder, 0o700)
            shutil.rmtree(self.home)
        return code

    def _continue(self) -> None:
        """Have the journal know the models that were copied."""
        journal = partial_of(self.family.out) / "journal"
        mark, first, *others = journal.read_bytes().splitlines(keepends=True)
        record = json.loads(first.partition(b" ")[2])
        files = record["identity"]["files"]
        record["identity"]["files"] = {file: FileIdentity.of(os.stat(file)) for file in files}
        journal.write_bytes(b"".join([mark, encode_record(record), *others]))

    def _merge(self, *options: str) -> int:
        out = self.family.out
        argv = [*ARGV, "--survey-cache", self.home / "cache", *options]
        ran = run(self.family.config, out, *argv)
        assert ran.code in (0, 1), ran
        if ran.code == 0 and not options:
            assert weights(out) == self.expected
            assert not partial_of(Path(os.path.realpath(out))).exists()
        if ran.code == 1:
            check_text(ran.out + ran.err)
            assert len(ran.err) < 3000
        return ran.code

    def _mine(self) -> dict[str, Any]:
        """Return the content of the user's folder; a device, which has no end, is not read."""
        found: dict[str, Any] = {}
        for path in sorted((self.home / "mine").rglob("*")):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() and status.st_size < 1 << 20 else None
            found[str(path)] = status.st_mode, status.st_size, status.st_ino, content
        return found


@pytest.fixture(scope="module")
def folders(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    top = tmp_path_factory.mktemp("layouts")
    family = small_family(top / "home")
    (family.home / "mine").mkdir()
    cached = ("--survey-cache", family.home / "cache")
    merge_json(family.config, family.home / "done", *ARGV, *cached)
    killed = forks.run(family.config, family.out, *ARGV, sabotage=[("kill_after", 4)])
    assert killed.code == -signal.SIGKILL
    return Folders(family, family.home.rename(top / "template"))


def test_layouts(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    """Up to three places at once."""
    assert folders.check([]) == 0
    change = st.tuples(st.sampled_from(PLACES), st.sampled_from([*KINDS]))

    def check(changes: Sequence[tuple[str, str]]) -> None:
        folders.check(changes)

    several = st.lists(change, min_size=1, max_size=3, unique_by=lambda change: change[0])
    fuzz(several, check, 12, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_place(kind: str, folders: Folders) -> None:
    for place in PLACES:
        folders.check([(place, kind)])
