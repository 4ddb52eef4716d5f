"""An OUT that cannot be written, or must not be: a clear message, and nothing half-written."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from fuseo1_kernels.checkpoint.sink import Sink
from support.models import Family, snapshot, write_model
from support.processes import done, merge_json, run, spawn
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
    """--dry-run says the same, and what would be deleted."""
    write_model(family.out, family.states[0])
    there = sorted(file.name for file in family.out.iterdir())
    planned = merge_json(family.config, family.out, "--overwrite", "--dry-run")
    assert planned["deletes"] == there
    assert f"--overwrite deletes {len(there)} files there: {there[0]}, " in planned["notes"][-1]
    (family.out / "thesis.tex").touch()
    words = (family.out, "will not delete thesis.tex")
    untouched(family, family.out, "--overwrite", words=words)
    ran = run(family.config, family.out, "--overwrite", "--dry-run")
    assert ran.code == 1
    for word in words:
        assert f"problem: {family.out}" in ran.out and str(word) in ran.out


@pytest.mark.parametrize("place", ["", "1_Pooling"])
def test_files_of_models_may_lie_in_out(place: str, family: Family) -> None:
    """OUT holds a model's own files alone, and another model's files lead there."""
    write_model(family.out, family.states[0])
    (family.out / "1_Pooling").mkdir()
    options = ["--overwrite", "--allow-links", family.out / place]
    untouched(family, family.out, *options, words=(family.out, "contains", "allow_links"))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "README.md"]
)
def test_a_model_has_a_file_in_out(name: str, family: Family) -> None:
    """The place that links may lead to holds OUT, too."""
    write_model(family.out, family.states[0])
    (family.out / "tokenizer.json").write_text("{}")
    (family.out / "README.md").touch()
    (family.base / name).unlink(missing_ok=True)
    (family.base / name).symlink_to(family.out / name)
    options = ["--overwrite", "--no-copy-tokenizer", "--allow-links", family.out.parent]
    words = (family.out, "contains the input model", name)
    untouched(family, family.out, *options, words=words)


def test_what_comes_to_out_during_the_merge(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(family.out, family.states[0])
    real = Sink.add_file

    def add_file(self: Sink, name: str, data: bytes) -> None:
        (family.out / "thesis.tex").touch()
        real(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Sink, "add_file", add_file)
        failed = run(family.config, family.out, "--overwrite")
    assert failed.code == 1 and "will not delete thesis.tex" in failed.err
    (family.out / "thesis.tex").unlink()
    assert merge_json(family.config, family.out, "--overwrite")["resumed"] == 15


@pytest.mark.parametrize("options", [[], ["--overwrite"], ["--dry-run"]])
@pytest.mark.parametrize("out", ["", ".", "..", "/"])
def test_places_that_are_no_models(
    out: str, options: list[str], family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unset variable in a script is the empty text, which is not the current directory."""
    write_model(family.home / "here" / "there", family.states[0])
    monkeypatch.chdir(family.home / "here" / "there")
    before = snapshot(family.home)
    ran = run(family.config, out, *options)
    assert ran.code == 1 and (ran.out + ran.err).count("choose another OUT") == (out != "")
    assert out or "OUT is empty" in ran.out + ran.err
    assert snapshot(family.home) == before


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
