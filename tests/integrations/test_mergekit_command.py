"""`python -m fuseo1_kernels.mergekit`: mergekit-yaml with the kernels inside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import click
import pytest
import torch

pytest.importorskip("mergekit")


from fuseo1_kernels.cli import mergekit as command
from fuseo1_kernels.cli.arguments import make_parser
from fuseo1_kernels.integrations import mergekit as kernels
from support.models import assert_same_state, make_family, read_model
from support.processes import MERGE, spawn

TOPK = {"select_topk": 0.3}
COMMAND = ("-m", "fuseo1_kernels.mergekit")


@pytest.fixture(autouse=True)
def afterwards() -> Iterator[None]:
    kernels.reset_counts()
    yield
    kernels.uninstall()


def test_the_command_merges_as_mergekit_yaml_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = make_family(tmp_path)
    family.configure(parameters=TOPK, dtype="bfloat16")
    with pytest.raises(SystemExit) as stop:
        command.main([str(family.config), str(family.out), "--no-write-model-card", "--quiet"])
    assert stop.value.code == 0
    merged = read_model(family.out)
    assert_same_state(merged, family.expected(**TOPK, variant="mergekit"))
    total = len(merged)
    said = f"fuseo1-mergekit: the kernels merged {total} tensors (sce {total})\n"
    assert capsys.readouterr().err.endswith(said)
    assert not (family.out / "README.md").exists()


def test_every_flag_of_mergekit_yaml_is_accepted() -> None:
    from mergekit.scripts.run_yaml import main as mergekit_yaml

    tried = 0
    for option in mergekit_yaml.params:
        if not isinstance(option, click.Option):
            continue
        for flag in (*option.opts, *option.secondary_opts):
            value = [] if option.is_flag or option.count else ["cpu" if "device" in flag else "3"]
            make_parser().parse_args(["config", "out", flag, *value])
            tried += 1
    assert tried > 30


@pytest.mark.slow
@pytest.mark.parametrize("size", ["20K", "9000", "8k"])
def test_shards_are_mergekits(size: str, tmp_path: Path) -> None:
    family = make_family(tmp_path)
    family.configure(parameters=TOPK, dtype="bfloat16")
    for argv, out in ((COMMAND, "theirs"), (MERGE, "ours")):
        ran = spawn(*argv, family.config, tmp_path / out, "--out-shard-size", size, "--quiet")
        assert ran.code == 0, ran.err
    theirs, ours = (
        json.loads((tmp_path / out / "model.safetensors.index.json").read_text())["weight_map"]
        for out in ("theirs", "ours")
    )
    assert ours == theirs and len(set(ours.values())) > 4


def test_the_commands_random_seed_decides_the_masks(tmp_path: Path) -> None:
    family = make_family(tmp_path)
    half = {"weight": 1.0, "density": 0.5}
    family.configure(merge_method="dare_linear", parameters=half, dtype="bfloat16")

    def merged(seed: int, earlier: int) -> dict[str, Any]:
        out = tmp_path / f"{seed}-{earlier}"
        with torch.random.fork_rng(devices=[]), pytest.raises(SystemExit) as stop:
            torch.manual_seed(earlier)
            argv = [str(family.config), str(out), "--random-seed", str(seed), "--quiet"]
            command.main(argv)
        assert stop.value.code == 0
        return read_model(out)

    first, other = merged(5, 1), merged(6, 1)
    assert_same_state(merged(5, 2), first)
    assert kernels.counts().merged == {"dare_linear": 3 * len(first)}
    assert any(not torch.equal(other[name], first[name]) for name in first)


def test_the_command_has_mergekits_options(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, code in ((["--help"], 0), (["config.yaml", "out", "--no-such-option"], 2)):
        with pytest.raises(SystemExit) as stop:
            command.main(argv)
        assert stop.value.code == code
    said = capsys.readouterr()
    assert "Usage: fuseo1-mergekit" in said.out and "--lora-merge-cache" in said.out
    assert "--no-such-option" in said.err and "kernels" not in said.err


def test_without_mergekit_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(kernels, "version", missing)
    assert command.main([]) == 1
    assert capsys.readouterr().err == (
        "fuseo1-mergekit: error: mergekit is not installed: pip install mergekit==0.1.5\n"
    )
