"""An OUT that cannot be written, or must not be: a clear message, and nothing half-written."""

from __future__ import annotations

import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from support.models import Family, snapshot, write_model
from support.mounts import in_mount
from support.processes import Run, done, run, spawn
from support.refusals import one_layer_family, refused, untouched


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return one_layer_family(tmp_path)


# --- OUT ---------------------------------------------------------------------------------


def test_out_exists(family: Family) -> None:
    write_model(family.out, family.states[0])
    untouched(family, family.out, words=(family.out, "not empty", "--overwrite"))


def test_out_is_a_file(family: Family) -> None:
    file = family.home / "file"
    file.touch()
    for options in ([], ["--overwrite"]):
        untouched(family, file, *options, words=(file, "not a directory"))
        untouched(family, file / "below", *options, words=(file,))


def test_overwrite_takes_models_alone(family: Family) -> None:
    family.out.mkdir(parents=True)
    (family.out / "thesis.tex").touch()
    untouched(family, family.out, "--overwrite", words=(family.out, "does not look like a model"))


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_out_inside_a_source(options: list[str], family: Family) -> None:
    link = family.home / "link"
    link.symlink_to(family.target(1))
    for out in (family.base, family.base / "out", family.target(2) / "a" / "b", link, link / "x"):
        untouched(family, out, *options, words=(out, "inside the input model"))
    untouched(family, family.home, *options, words=(family.home, "contains the input model"))
    done(family.config, f"{family.target(1)}0", *options)  # begins like a source's name


def test_out_is_where_the_tokenizer_comes_from(family: Family) -> None:
    """A model that lends its tokenizer alone is a source too: --overwrite must not delete it."""
    lender = write_model(family.home / "lender", {"w": torch.ones(2)})
    family.configure(tokenizer_files={"model": str(lender)})
    untouched(family, lender, "--overwrite", words=(lender,))


def test_unwritable(family: Family) -> None:
    for out in (Path("/proc/fuseo1/out"), Path("/sys/fuseo1")):
        untouched(family, out, words=(out,))
        result = run(family.config, out, "--dry-run")
        assert result.code == 1 and str(out) in result.out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(family: Family) -> None:
    family.out.parent.mkdir()
    family.out.parent.chmod(0o500)
    untouched(family, family.out, words=(family.out, "Permission denied"))


# --- no space ----------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")


def test_no_space_by_what_the_system_says(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**6, 10**6 - 50_000, 50_000))
    refused(family, words=("no space left", "50000 are free"))


def test_a_limit_on_the_size_of_files(family: Family) -> None:
    before = snapshot(family.home)
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from fuseo1_kernels.cli.merge import main\n"
        "sys.exit(main())\n"
    )
    ran = spawn("-c", code, family.config, family.out)
    assert ran.code == 1, ran
    assert f"{family.out}/model.safetensors" in ran.err and "File too large" in ran.err
    assert snapshot(family.home) == before


def in_tmpfs(family: Family, size: int) -> Run:
    """Merge onto a file system of `size` bytes, which only this process sees; list what is left."""
    place = family.home / "small"
    script = (
        'mkdir "$1/mine"; "$2" -m fuseo1_kernels.merge "$3" "$1/mine/out" --quiet\n'
        'code=$?; find "$1" -mindepth 1; exit $code'
    )
    argv = ("sh", "-c", script, "sh", place, sys.executable, family.config)
    ran = in_mount(place, f"size={size}", *argv)
    return Run(ran.code, ran.out.replace(str(place), ""), ran.err)


def test_no_space_for_the_weights(family: Family) -> None:
    ran = in_tmpfs(family, 40 << 10)
    assert ran.code == 1
    assert "no space left" in ran.err
    assert ran.out.split() == ["/mine"]


def test_no_space_for_the_small_files(family: Family) -> None:
    size = (family.base / "model.safetensors").stat().st_size
    (family.base / "tokenizer.json").write_bytes(bytes(1 << 20))
    ran = in_tmpfs(family, size + (64 << 10))
    assert ran.code == 1
    assert "No space left on device" in ran.err and "tokenizer.json" in ran.err
    assert "/mine/out" not in ran.out.split()
    assert "out.partial keeps what was merged" in ran.err


def test_enough_space(family: Family) -> None:
    ran = in_tmpfs(family, 1 << 20)
    assert ran.code == 0, ran.err
    assert "/mine/out/model.safetensors" in ran.out.split()


def test_a_disk_that_fails_while_weights_are_written(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev

    def fail(fd: int, data: list[memoryview], offset: int, flags: int) -> int:
        if offset > 20_000:
            raise OSError(5, "Input/output error")
        return real(fd, data, offset, flags)

    monkeypatch.setattr(os, "pwritev", fail)
    words = ("OUT/model.safetensors: writing tensor", "Input/output error")
    refused(family, "--threads", "1", words=words)
