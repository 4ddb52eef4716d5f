"""Streams and directories that are closed, full, gone or in ASCII: the right exit code, one message or none."""

from __future__ import annotations

import fcntl
import io
import json
import os
import struct
import sys
import termios
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

import pytest

from fuseo1_kernels.cli import merge
from fuseo1_kernels.cli.progress import TerminalProgress, make_progress
from fuseo1_kernels.cli.terminal import standard_streams
from fuseo1_kernels.cli.verify import main as verify
from support.models import Family, read_model
from support.processes import MERGE, done, environment, run, shown, spawn
from support.refusals import one_layer_family
from support.tuning import current


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return one_layer_family(tmp_path)


def whole() -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8")


def in_ascii() -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


def unread() -> TextIO:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def full() -> TextIO:
    return open("/dev/full", "w")


def hung_up() -> TextIO:
    """A terminal whose window was closed: writing is EIO."""
    leader, follower = os.openpty()
    os.close(leader)
    return open(follower, "w")


def closed() -> TextIO:
    with open(os.devnull, "w") as stream:
        return stream


def absent() -> None:
    """What Python has for a descriptor that was closed when it started."""


Stream = Callable[[], TextIO | None]
LOST = "fuseo1-merge: standard output cannot be written (No space left on device)\n"


@pytest.mark.parametrize("argv", [[], ["--json"], ["--quiet"], ["--dry-run"], ["--nonsense"]])
@pytest.mark.parametrize(
    ("out", "err", "said"),
    [
        (whole, unread, ""),
        (whole, full, ""),
        (whole, absent, ""),
        (unread, whole, ""),
        (full, whole, LOST),
        (hung_up, whole, LOST.replace("No space left on device", "Input/output error")),
        (hung_up, hung_up, ""),
        (closed, closed, ""),
        (absent, absent, ""),
        (in_ascii, in_ascii, ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_exit_codes_do_not_depend_on_streams(
    out: Stream, err: Stream, said: str, argv: list[str], family: Family
) -> None:
    target = family.out.with_name("modèle")
    streams = [out(), err()]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            code = merge.main([str(family.config), str(target), *argv], tuning=current())
        except SystemExit as stop:
            code = int(stop.code or 0)
        assert sys.stdout is streams[0] and sys.stderr is streams[1]
    assert code == (2 if "--nonsense" in argv else 0)
    if code == 0 and "--dry-run" not in argv:
        assert read_model(target).keys() == family.states[0].keys()
    printed = []
    for stream in streams:
        if stream is None or stream.closed:
            continue
        stream.flush()  # what Python does at its exit
        if isinstance(stream, io.TextIOWrapper) and isinstance(stream.buffer, io.BytesIO):
            printed.append(stream.buffer.getvalue().decode(stream.encoding))
        else:
            stream.close()
    if argv == [] and err is whole:
        assert printed[-1] == f"merging {len(family.states[0])} tensors, 0.00 GB\n{said}"
    if argv == [] and out is in_ascii:
        assert r"mod\xe8le" in printed[0]


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        (">/dev/full", f"merging 15 tensors, 0.00 GB\n{LOST}"),
        (">&- 2>&- <&-", ""),
        ("2>&1 | true", ""),
    ],
)
def test_nothing_is_said_when_python_ends(redirection: str, said: str, family: Family) -> None:
    assert len(family.states[0]) == 15
    script = f'set -o pipefail; "$0" -m fuseo1_kernels.merge "$1" "$2" {redirection}'
    argv = ("-c", "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))")
    ran = spawn(*argv, "bash", "-c", script, sys.executable, family.config, family.out)
    assert (ran.code, ran.out, ran.err) == (0, "", said)
    assert read_model(family.out).keys() == family.states[0].keys()


def test_a_model_never_gets_the_number_of_a_closed_stream(family: Family) -> None:
    """What is written to standard error by whoever it may be would be written into the model."""
    code = (
        "import os, sys\n"
        "from fuseo1_kernels.checkpoint import sink\n"
        "real = sink.Sink.complete\n"
        "def complete(self, tensors):\n"
        "    assert os.readlink('/proc/self/fd/2') == os.devnull\n"
        "    real(self, tensors)\n"
        "sink.Sink.complete = complete\n"
        "from fuseo1_kernels.cli.merge import main\n"
        "os.close(2)\n"
        "sys.exit(main())\n"
    )
    assert spawn("-c", code, family.config, family.out, "--quiet").code == 0


def test_a_directory_that_is_gone(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = family.home / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done(family.config, family.out)
    words = "the current directory is gone: change to another one, or give absolute paths"
    for config, out in (("merge.yaml", family.out), (family.config, "out"), ("c", "o")):
        for options in ([], ["--dry-run"], ["--json"]):
            result = run(config, out, *options)
            assert result.code == 1 and result.err.count("error: ") == 1 and words in result.err
            assert "--json" not in options or words in json.loads(result.out)["error"]
    family.configure(models=[{"model": "target1"}])
    assert words in run(family.config, family.home / "other").err
    with redirect_stderr(io.StringIO()) as err:
        assert verify(["out"]) == 1
    assert words in err.getvalue()


def test_homes_are_found(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(family.home))
    monkeypatch.chdir("/")
    family.configure(base_model="~/base", models=[{"model": "~/target1"}, {"model": "~/target2"}])
    done("~/merge.yaml", "~/results/merged", "--survey-cache", "~/surveys")
    assert read_model(family.out).keys() == family.states[0].keys()
    assert (family.home / "surveys").is_dir()
    with redirect_stdout(io.StringIO()) as said:
        assert verify(["~/results/merged", "--quiet", "--json", "--recompute", "1"]) == 0
    assert json.loads(said.getvalue())["problems"] == []
    assert "~" not in (family.out / "README.md").read_text()


def test_names_that_are_not_utf_8(family: Family) -> None:
    out = family.home / os.fsdecode(b"o\xff")
    assert f"merged into  {family.home}/o\\xff\n" in done(family.config, out).out
    assert (out / "README.md").read_text().count("o\\udcff") == 1
    config = family.home / os.fsdecode(b"c\xff.yaml")
    assert f"error: {family.home}/c\\xff.yaml: neither" in run(config, family.out).err
    os.rename(family.config, config)
    done(config, family.out)
    model = family.home / os.fsdecode(b"m\xff")
    os.rename(family.base, model)
    result = run(config, model)
    assert result.code == 1 and result.err.count("error: ") == 1


@pytest.mark.parametrize("name", ["n" * 250, "n" * 300, "é" * 124, "n" * 300 + "/out", "n/" * 2000])
@pytest.mark.parametrize("options", [[], ["--overwrite"], ["--dry-run"], ["--no-resume"]])
def test_names_that_are_too_long(name: str, options: list[str], family: Family) -> None:
    result = run(family.config, family.home / name, *options)
    assert result.code == 1 and result.out == ""
    assert result.err.count("error: ") == 1 and "is too long" in result.err
    assert len(result.err) < 2100


def test_the_bar_follows_the_terminal() -> None:
    leader, follower = os.openpty()

    def resize(columns: int) -> None:
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    resize(100)
    with open(follower, "w", closefd=False) as stream:
        progress = TerminalProgress(stream)
        progress.start("merging", 1000)
        resize(50)
        progress.advance(1000)
        progress.close()
    os.close(follower)
    bars = shown(leader).strip().split("\r")
    assert 90 < len(bars[0]) <= 100 and 40 < len(bars[-1].rstrip()) <= 50


def test_the_bar_ends_quietly_with_its_terminal() -> None:
    leader, follower = os.openpty()
    with open(follower, "w") as stream, redirect_stderr(stream):
        with standard_streams("fuseo1-merge"):
            progress = make_progress()
            assert isinstance(progress, TerminalProgress)
            progress.start("merging", 1000)
            os.close(leader)
            progress.advance(1000)
            progress.close()
        stream.flush()


def test_a_locale_without_utf_8(family: Family) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = spawn(*MERGE, family.config, family.out.with_name("modèle"), env=environment(plain))
    assert ran.code == 0, ran
    assert ran.out.startswith(f"merged into  {family.out.parent}/mod\\xc3\\xa8le\n")
