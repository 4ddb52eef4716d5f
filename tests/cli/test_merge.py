"""The command line when all goes well: its options, and what it prints."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import resource
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch

import fuseo1_kernels
from fuseo1_kernels import __main__
from fuseo1_kernels.cli.arguments import make_parser, parse_size
from fuseo1_kernels.cli.progress import per_second
from fuseo1_kernels.config.load import as_config
from fuseo1_kernels.engine.options import check_sizes
from fuseo1_kernels.errors import ConfigError
from fuseo1_kernels.version import __version__
from support.models import Family, assert_same_state, read_model, weights, write_model
from support.processes import MERGE, Run, done, environment, merge_json, run, shown, spawn
from support.recipes import PUBLISHED

# --- versions, recipes, options ----------------------------------------------------------


def test_versions_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main() == 0
    out = capsys.readouterr().out
    assert f"fuseo1-kernels {__version__}" in out
    assert f"torch {torch.__version__}" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert "kernels (this machine runs baseline" in lines["cpu"]
    for name in ("cuda", "triton"):
        assert torch.cuda.is_available() or "absent: " in lines[name]


def test_version() -> None:
    result = run("--version")
    assert (result.code, result.out.strip()) == (0, f"fuseo1-kernels {__version__}")


def test_list_recipes() -> None:
    result = done("--list-recipes")
    lines = result.out.splitlines()
    assert lines[::2] == sorted(PUBLISHED)
    assert all(line.startswith("    ") and line.endswith(".") for line in lines[1::2])


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("5gb", 5 * 10**9),
        ("5G", 5 * 10**9),
        ("5B", 5 * 10**9),
        ("512MiB", 512 << 20),
        ("512 MiB", 512 << 20),
        ("1KiB", 1024),
        ("1TB", 10**12),
        ("1.5GB", 15 * 10**8),
        ("1000000", 10**6),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-5GB", "0", "0.1", "5XB", "5 GB each", "1e9", "nan"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_size(text)


def test_a_size_beyond_all_numbers() -> None:
    assert run("config.yaml", "out", "--max-memory", "9" * 400).code == 2


def test_mergekits_spellings() -> None:
    parse = make_parser().parse_args
    options = parse(["c", "o", "--out-shard-size", "2B", "--no-copy-tokenizer", "--cuda"])
    assert (options.shard_size, options.copy_tokenizer, options.cuda) == (2 * 10**9, False, True)
    assert parse(["c", "o"]).copy_tokenizer is parse(["c", "o", "--copy-tokenizer"]).copy_tokenizer


def test_mergekits_flags_without_a_meaning_are_noted(family: Family) -> None:
    flags = ("--lazy-unpickle", "--allow-crimes", "--no-trust-remote-code", "-v", "--lazy-unpickle")
    result = done(family.config, family.out, *flags, "--write-threads", "4")
    noted = [line.split()[1] for line in result.err.splitlines() if line.startswith("note: ")]
    assert noted == ["--lazy-unpickle", "--allow-crimes", "-v", "--write-threads"]
    assert "--device cuda:0,cuda:1" in run(family.config, family.out, "--multi-gpu").err
    merge_json(family.config, family.out, *flags)


def test_help() -> None:
    result = done("--help")
    assert result.out.count("\n  fuseo1-merge ") == 4
    assert all(page in result.out for page in ("README.md", "docs/config.md", "docs/command.md"))
    lines = result.out.splitlines()
    groups = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert len(groups) >= 7 and max(map(len, lines)) <= 100
    begins = lines.index(groups[-1])
    for line in lines[begins:]:
        if line.startswith("  fuseo1-merge "):
            make_parser().parse_args(line.split()[1:])


# --- what is printed ---------------------------------------------------------------------


def test_json_is_one_object_and_nothing_else(family: Family) -> None:
    ran = spawn(*MERGE, family.config, family.out, "--json")
    assert ran.code == 0
    assert ran.out.count("\n") == 1
    said = json.loads(ran.out)
    assert said.keys() == {
        *("out_dir", "tensors", "parameters", "bytes_read", "bytes_written", "seconds"),
        *("shards", "energy_share", "exact_path", "resumed", "backend", "notes"),
    }
    assert said["out_dir"] == str(family.out)
    assert said["tensors"] == len(family.states[0])
    assert said["shards"] == ["model.safetensors"]
    assert list(said["energy_share"]) == [str(family.target(1)), str(family.target(2))]
    assert ran.err.startswith("merging 39 tensors")  # progress goes elsewhere


def test_plain_lines_where_there_is_no_terminal(family: Family) -> None:
    result = done(family.config, family.out)
    assert result.err.startswith("merging 39 tensors")
    assert "\r" not in result.err
    assert str(family.out) in result.out and "energy share" in result.out
    assert " parameters, 1 file\n" in result.out
    assert str(family.target(1)) in result.out and str(family.target(2)) in result.out


def test_progress_goes_to_the_standard_error_of_the_moment(family: Family) -> None:
    first, second = (done(family.config, family.home / name) for name in ("one", "two"))
    assert first.err.startswith("merging") and second.err.startswith("merging")


def test_a_bar_on_a_terminal(family: Family) -> None:
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    ran = subprocess.run(
        [sys.executable, *MERGE, str(family.config), str(family.out)],
        stdout=subprocess.PIPE,
        stderr=follower,
        env=environment(),
        check=True,
    )
    os.close(follower)
    said = shown(leader)
    assert "merging 39 tensors: 100%" in said and "B/s" in said
    assert b"energy share" in ran.stdout


def test_quiet(family: Family) -> None:
    ran = spawn(*MERGE, family.config, family.out, "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert (family.out / "model.safetensors").exists()


def test_notes_are_printed(family: Family) -> None:
    write_model(family.target(2), family.states[2] | {"model.extra.weight": torch.ones(3)})
    result = done(family.config, family.out)
    assert "note: " in result.out and "model.extra.weight" in result.out
    said = merge_json(family.config, family.home / "other")
    assert "model.extra.weight" in said["notes"][0] and str(family.target(2)) in said["notes"][0]


# --- options that reach the engine -------------------------------------------------------


def test_shards_threads_and_memory(family: Family) -> None:
    argv = ["--shard-size", "20KB", "--threads", "2", "--max-memory", "64MiB"]
    said = merge_json(family.config, family.out, *argv)
    assert len(said["shards"]) > 3
    same = merge_json(family.config, family.home / "same", "--out-shard-size", "20KB", "-j", "1")
    assert same["shards"] == said["shards"]
    assert weights(family.home / "same") == weights(family.out)


def test_backend(family: Family) -> None:
    for name in ("cpu", "reference"):
        said = merge_json(family.config, family.home / name, "--backend", name)
        assert said["backend"].startswith(f"{name}: ")
    assert weights(family.home / "cpu") == weights(family.home / "reference")


def test_kernels_that_are_not_built(family: Family) -> None:
    """Python in a clone whose package was installed elsewhere: one line says so, --quiet or not."""
    config = str(family.config)
    wanted = (
        (config, str(family.out), "--quiet"),
        (config, "--dry-run", "--json"),
        (config, "--dry-run", "--backend", "cpu"),
    )
    all_three = spawn(
        "-c",
        "import json, sys; sys.modules['fuseo1_kernels.backends._cpu'] = None\n"
        "from support.processes import run\n"
        f"print(json.dumps([vars(run(*argv)) for argv in {wanted}]))",
    )
    ran, planned, named = (Run(**said) for said in json.loads(all_three.out))
    package = Path(fuseo1_kernels.__file__).parent
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == (
        f"note: backend cpu cannot run here: the kernels are not built in {package}, which Python "
        "found instead of the installed package: run from another directory, or `pip install -e .`; "
        "reference is used instead\n"
    )
    assert json.loads(planned.out)["problems"] == [] and planned.err == ran.err
    assert named.code == 1 and "problem: backend cpu cannot run here: the kernels" in named.out


def test_limits_on_open_files_that_cannot_be_raised(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (ValueError("not allowed to raise maximum limit"), PermissionError()):

        def refuse(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(resource, "setrlimit", refuse)
        done(family.config, family.out)


@pytest.mark.parametrize("dry", [False, True])
def test_an_interruption_names_out(
    dry: bool, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fuseo1_kernels.config.load.as_config", interrupt)
    said = run(family.config, *(["--dry-run"] if dry else [family.out]))
    untouched = "" if dry else f"; nothing was written to {family.out}"
    assert (said.code, said.err) == (130, f"fuseo1-merge: interrupted{untouched}\n")


def test_a_directory_of_a_recipes_name_does_not_hide_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "FuseO1-DeepSeekR1-QwQ-32B-Preview"
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert as_config(name).base_model == "Qwen/Qwen2.5-32B"


@pytest.mark.parametrize("size", ["2GiB", 2e9, None, True])
def test_sizes_that_are_no_number_of_bytes(size: object) -> None:
    with pytest.raises(ConfigError) as caught:
        check_sizes(max_memory=size)
    assert str(caught.value) == (
        f"max_memory: {size!r} is not a number of bytes; write for example 5 * 10**9 or 512 << 20"
    )
    with pytest.raises(ConfigError, match="shard_size: 0: a size must be positive"):
        check_sizes(max_memory=1, shard_size=0)


@pytest.mark.parametrize(
    ("rate", "text"), [(3.2e9, "3.20 GB/s"), (1e7, "0.01 GB/s"), (9.9e6, "9.90 MB/s")]
)
def test_rates(rate: float, text: str) -> None:
    assert per_second(rate) == text


def test_no_copy_tokenizer(family: Family) -> None:
    done(family.config, family.out, "--no-copy-tokenizer")
    assert not list(family.out.glob("tokenizer*"))
    assert (family.out / "config.json").exists()


def test_overwrite(family: Family) -> None:
    done(family.config, family.out)
    (family.out / "merges.txt").touch()
    family.configure(parameters={"select_topk": 0.1})
    done(family.config, family.out, "--overwrite")
    assert not (family.out / "merges.txt").exists()
    assert_same_state(read_model(family.out), family.expected(select_topk=0.1))
    assert [p.name for p in family.out.parent.iterdir()] == ["merged"]


def test_relative_names_are_taken_from_the_current_directory(family: Family) -> None:
    family.configure(models=[{"model": "target1"}, {"model": "./target2"}], base_model="base/")
    ran = spawn(*MERGE, "merge.yaml", "out", "--json", "--quiet", cwd=family.home)
    assert ran.code == 0, ran.err
    assert_same_state(read_model(family.home / "out"), family.expected())
    assert list(json.loads(ran.out)["energy_share"]) == ["target1", "./target2"]
