"""Bad configs, models and options on the command line: a clear message, exit code 1, OUT untouched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from support.models import Family, write_model
from support.processes import done, run, spawn
from support.refusals import UP, one_layer_family, refused


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return one_layer_family(tmp_path)


# --- the config: every mistake has its test in tests/config --------------------------------------


@pytest.mark.parametrize("text", ["- a\n- b\n", "{", "\x00"])
def test_yaml_that_is_no_config(text: str, family: Family) -> None:
    family.config.write_text(text)
    refused(family, words=(family.config,))


def test_one_directory_under_two_names(family: Family) -> None:
    """A link, or a name relative to the current directory: the model would count twice."""
    link = family.home / "link"
    link.symlink_to(family.target(1))
    family.configure(models=[{"model": str(family.target(1))}, {"model": str(link)}])
    refused(family, words=(family.target(1), link))
    link.unlink()
    family.configure(models=[{"model": os.path.relpath(family.base)}, {"model": str(family.base)}])
    refused(family, words=(family.base,))


# --- models: damaged files have their tests in tests/checkpoint, models that do not fit in tests/plan ---


def test_many_problems_at_once(family: Family) -> None:
    names = list(family.states[1])
    save_file({"w": torch.ones(1)}, family.target(1) / "model.safetensors")
    problems = [f"tensor {n}: missing in model {family.target(1)}" for n in sorted(names)]
    message = refused(family, words=(problems[0], problems[-1]))
    assert len(message) <= 2000
    left = int(message.partition("  [")[2].partition(" line")[0]) if "left out" in message else 0
    assert left + sum(line.strip() in problems for line in message.splitlines()) == len(problems)
    planned = run(family.config, "--dry-run")
    assert planned.out.splitlines()[-len(problems) :] == [f"problem: {p}" for p in problems]


def test_nonfinite(family: Family) -> None:
    state = {n: t.clone() for n, t in family.states[2].items()}
    state[UP].view(-1)[:5] = float("-inf")
    write_model(family.target(2), state)
    refused(family, words=(family.target(2), UP, "5 NaN or infinite", "--nonfinite propagate"))
    done(family.config, family.out, "--nonfinite", "propagate")


# --- the command line --------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("options", [["--cuda"], ["--backend", "cuda"], ["--device", "cuda:1"]])
def test_cuda_without_a_gpu(options: list[str], family: Family) -> None:
    message = refused(family, *options, words=("backend cuda cannot run here: ",))
    assert "\n" not in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "gpu"], ("'gpu'", "cuda:0,cuda:1")),
        (["--device", "cuda:"], ("'cuda:'",)),
        (["--device", "cuda:0,cpu"], ("'cuda:0,cpu'",)),
        (["--device", "cuda,cuda:0"], ("names a GPU twice",)),
        (["--device", "cpu", "--backend", "cuda"], ("backend cuda", "device cpu")),
        (["--device", "cuda", "--backend", "cpu"], ("backend cpu", "device cuda")),
        (["--device", "cpu", "--cuda"], ("--cuda", "--device cpu")),
        (["--cuda", "--backend", "cpu"], ("--cuda", "--backend cpu")),
        (["--max-gpu-memory", "1GB"], ("max_gpu_memory", "device")),
    ],
)
def test_devices_that_make_no_sense(
    options: list[str], words: tuple[str, ...], family: Family
) -> None:
    assert "\n" not in refused(family, *options, words=words)


def test_unknown_recipe(tmp_path: Path) -> None:
    for name, hint in (
        ("FuseO1-DeekSeekR1-QwQ-32B-Preview", "FuseO1-DeepSeekR1-QwQ-32B-Preview"),
        ("no-such-file.yaml", "--list-recipes"),
    ):
        result = run(name, tmp_path / "out")
        assert (result.code, result.out) == (1, "")
        assert name in result.err and hint in result.err and "\n" not in result.err.strip()
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["config.yaml"],
        ["config.yaml", "out", "more"],
        ["config.yaml", "out", "--threads", "0"],
        ["config.yaml", "out", "--threads", "two"],
        ["config.yaml", "out", "--max-memory", "lots"],
        ["config.yaml", "out", "--shard-size", "0"],
        ["config.yaml", "out", "--backend", "tpu"],
        ["config.yaml", "out", "--nonfinite", "ignore"],
        ["config.yaml", "out", "--shard-siz", "5GB"],
    ],
)
def test_usage(argv: list[str]) -> None:
    result = run(*argv)
    assert result.code == 2
    assert result.out == "" and "usage: fuseo1-merge" in result.err


def test_too_little_memory(family: Family) -> None:
    message = refused(family, "--max-memory", "1MiB", words=("--max-memory 1 MiB", "the least is"))
    least = message.split("the least is ")[1].split(" MiB")[0]
    refused(family, "--max-memory", f"{int(least) - 1}MiB", words=(f"the least is {least} MiB",))
    done(family.config, family.out, "--max-memory", f"{least}MiB")


def test_many_threads(family: Family) -> None:
    """More than there are cores costs nothing: neither memory nor a crash."""
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "from fuseo1_kernels.cli.merge import main\n"
        "sys.exit(main())\n"
    )
    ran = spawn("-c", code, family.config, family.out, "--quiet", "--threads", "1000000")
    assert ran.code == 0, ran.err
