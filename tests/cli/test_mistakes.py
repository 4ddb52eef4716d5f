"""Bad configs and options on the command line: a clear message, exit code 1, OUT untouched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from support.checkpoint_files import write_json
from support.models import Family, model_config
from support.processes import done, run, spawn
from support.refusals import one_layer_family, refused


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return one_layer_family(tmp_path)


# --- the config --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_model": ...}, ("base_model", "is required")),
        ({"merge_method": ...}, ("merge_method", "is required")),
        ({"merge_method": "sec"}, ("merge_method", "'sec'", "'sce'")),
        ({"merge_method": "ram"}, ("ram", "not in fuseo1-kernels yet")),
        ({"models": []}, ("at least one model beside the base",)),
        ({"models": None}, ("`models`", "`slices`")),
        ({"modles": []}, ("'modles'", "'models'")),
        ({"parameters": {"select_topk": 1.5}}, ("parameters.select_topk", "[0, 1]", "1.5")),
        ({"parameters": {"select_topk": -0.1}}, ("parameters.select_topk", "-0.1")),
        ({"parameters": {"select_topk": "abc"}}, ("parameters.select_topk", "'abc'")),
        ({"parameters": {"select_topk": float("nan")}}, ("parameters.select_topk", "nan")),
        ({"parameters": {"select_topk": [0.1, 2]}}, ("parameters.select_topk[1]", "2")),
        ({"parameters": {"select_top": 1}}, ("'select_top'", "'select_topk'")),
        ({"parameters": {"variant": "other"}}, ("parameters.variant", "fuseo1, mergekit")),
        ({"dtype": "int8"}, ("dtype", "bfloat16")),
        ({"tokenizer_source": "union"}, ("tokenizer_source", "union")),
    ],
)
def test_bad_config(changes: dict[str, object], words: tuple[str, ...], family: Family) -> None:
    family.configure(**changes)
    refused(family, words=(family.config, *words))


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "just text", "3", "null", "{", "a: b: c", "\x00", "{a: 1, a: 2}"]
)
def test_yaml_that_is_no_config(text: str, family: Family) -> None:
    family.config.write_text(text)
    refused(family, words=(family.config,))


def test_yaml_that_is_no_mapping_says_so(family: Family) -> None:
    family.config.write_text("- model: a\n")
    refused(family, words=("must be a mapping",))


def test_config_that_cannot_be_read(family: Family) -> None:
    family.config.write_bytes(b"\xff\xfe\x00")
    refused(family, words=(family.config, "UTF-8"))
    family.config.unlink()
    family.config.mkdir()
    words = f"{family.config}: is a directory; give a YAML file or a recipe's name"
    refused(family, words=(words,))


def test_one_model_only(family: Family) -> None:
    family.configure(models=[{"model": str(family.base)}])
    refused(family, words=("at least one model beside the base", family.base))


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/../target1", "{}/."])
def test_duplicate_models(spelling: str, family: Family) -> None:
    name = str(family.target(1))
    family.configure(models=[{"model": name}, {"model": spelling.format(name)}])
    refused(family, words=(name, "twice" if spelling == "{}" else "are one model"))


def test_one_directory_under_two_names(family: Family) -> None:
    """A link, or a name relative to the current directory: the model would count twice."""
    link = family.home / "link"
    link.symlink_to(family.target(1))
    family.configure(models=[{"model": str(family.target(1))}, {"model": str(link)}])
    refused(family, words=(family.target(1), link))
    link.unlink()
    family.configure(models=[{"model": os.path.relpath(family.base)}, {"model": str(family.base)}])
    refused(family, words=(family.base,))


def test_slice_beyond_the_model(family: Family) -> None:
    ranges = [{"model": str(family.base), "layer_range": [0, 1]}]
    ranges += [{"model": str(family.target(1)), "layer_range": [1, 2]}]
    family.configure(models=..., slices=[{"sources": ranges}])
    write_json(family.target(1) / "config.json", model_config(num_hidden_layers=1))
    refused(family, words=(family.target(1), "layer_range ends at 2", "1 layers"))


def test_no_copy_tokenizer_contradicts_a_template(family: Family) -> None:
    family.configure(chat_template="{{ messages }}")
    refused(family, "--no-copy-tokenizer", words=("--no-copy-tokenizer", "template"))


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
        (["--max-gpu-memory", "1GB"], ("max_gpu_memory", "device")),
    ],
)
def test_devices_that_make_no_sense(
    options: list[str], words: tuple[str, ...], family: Family
) -> None:
    assert "\n" not in refused(family, *options, words=words)


def test_cuda_contradicts_another_backend(family: Family) -> None:
    refused(family, "--cuda", "--backend", "cpu", words=("--cuda", "--backend cpu"))


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
        ["config.yaml", "out", "--lora-merge-cache", "x"],
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
