"""Bad input on the command line: a clear message, exit code 1, OUT untouched, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_files import raw_file, write_json
from models import (
    Family,
    Run,
    base_state,
    done,
    make_family,
    model_config,
    run,
    snapshot,
    spawn,
    tokenizer_files,
    tuned,
    write_model,
)
from mounts import in_mount
from safetensors.torch import save_file

MERGE = ("-m", "fuseo1_kernels.merge")
NORM, UP = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    base = base_state(layers=1)
    yield make_family(tmp_path, [base, tuned(base, 1), tuned(base, 2)])


def refused(family: Family, *options: object, words: tuple[object, ...]) -> str:
    """The merge fails, names `words`, and leaves OUT as it is: absent, and with an older model."""
    old = family.home / "old" / "model"
    if not old.exists():
        write_model(old, {"w": torch.ones(3)})
    before = snapshot(family.home)
    said = set()
    for out, *more in ([family.out], [old, "--overwrite"]):
        result = run(family.config, out, *more, *options)
        assert result.code == 1, result
        assert result.out == ""
        assert snapshot(family.home) == before
        lines = result.err.splitlines()
        while lines and not lines[0].startswith("fuseo1-merge: error: "):
            assert lines.pop(0).startswith("merging ")
        said.add("\n".join(lines).replace(str(out), "OUT"))
    assert len(said) == 1
    message = said.pop()
    assert message.count("error: ") == 1 and "Traceback" not in message
    for word in words:
        assert str(word) in message, (word, message)
    return message


# --- safetensors files -------------------------------------------------------------------

W = {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}


def header(*entries: tuple[str, dict[str, object]], size: int = 8) -> Callable[[Path], None]:
    """Replace the file by one with these entries, written by hand: names may repeat."""
    text = ", ".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries)

    def damage(file: Path) -> None:
        raw_file(file, f"{{{text}}}".encode(), bytes(size))

    return damage


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def longer(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"\0")


def header_length(length: int) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "truncated": (cut, ("truncated",)),
    "trailing bytes": (longer, ("belong to no tensor",)),
    "empty file": (lambda file: file.write_bytes(b"") and None, ("truncated",)),
    "header longer than the file": (header_length(1 << 20), ("its header claims",)),
    "header of absurd length": (header_length((1 << 64) - 1), ("its header claims",)),
    "not JSON": (lambda file: raw_file(file, b"{not JSON}") and None, ("header",)),
    "no object": (lambda file: raw_file(file, b"[1, 2]") and None, ("safetensors",)),
    "negative offset": (header(("w", W | {"data_offsets": [-8, 0]})), ("'w'", "data_offsets")),
    "offsets reversed": (header(("w", W | {"data_offsets": [8, 0]})), ("'w'", "data_offsets")),
    "offset past all files": (
        header(("w", W | {"data_offsets": [1 << 62, (1 << 62) + 8]})),
        ("'w'",),
    ),
    "offset past 64 bits": (header(("w", W | {"data_offsets": [0, 1 << 70]})), ("'w'",)),
    "overlap": (header(("v", W), ("w", W | {"data_offsets": [4, 12]}), size=12), ("overlaps",)),
    "same bytes twice": (header(("v", W), ("w", W)), ("overlaps",)),
    "hole": (header(("w", W | {"data_offsets": [8, 16]}), size=16), ("belong to no tensor",)),
    "shape x dtype": (header(("w", W | {"shape": [5]})), ("'w'", "10 bytes", "span 8")),
    "absurd shape": (header(("w", W | {"shape": [1 << 40, 1 << 40]})), ("'w'", "absurd")),
    "negative shape": (header(("w", W | {"shape": [-4]})), ("'w'", "shape")),
    "duplicate name": (header(("w", W), ("w", W)), ("'w'", "twice")),
    "unknown dtype": (header(("w", W | {"dtype": "Q4"})), ("'w'", "Q4")),
    "no dtype": (header(("w", {"shape": [4], "data_offsets": [0, 8]})), ("'w'", "'dtype'")),
    "git-lfs pointer": (
        lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n") and None,
        ("git-lfs",),
    ),
}


@pytest.mark.parametrize("model", [0, 2])
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_file(name: str, model: int, family: Family) -> None:
    damage, words = DAMAGES[name]
    file = (family.target(model) if model else family.base) / "model.safetensors"
    damage(file)
    refused(family, words=(file, *words))


def test_damaged_torch_file(family: Family) -> None:
    (family.target(1) / "model.safetensors").unlink()
    file = family.target(1) / "pytorch_model.bin"
    torch.save({"w": torch.ones(4), "evil": print}, file)
    refused(family, words=(file, "not opened"))
    torch.save(family.states[1], file)
    os.truncate(file, 1000)
    refused(family, words=(file, "download it again"))


# --- indexes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "through", ["../target2/model.safetensors", "../../x", "a/../../x", "absolute"]
)
def test_an_index_that_leaves_the_directory(through: str, family: Family) -> None:
    model = write_model(family.target(1), family.states[1], shards=2)
    (model / "model.safetensors").unlink()
    index = json.loads((model / INDEX).read_text())
    shard = str(family.target(2) / "model.safetensors") if through == "absolute" else through
    index["weight_map"][NORM] = shard
    write_json(model / INDEX, index)
    refused(family, words=(model / INDEX, NORM, shard, "inside the model's directory"))


@pytest.mark.parametrize("directory", [False, True])
def test_a_shard_that_is_a_link_out(directory: bool, family: Family) -> None:
    model = write_model(family.target(1), family.states[1], shards=2)
    (model / "model.safetensors").unlink()
    shard = model / "model-00002-of-00002.safetensors"
    outside = family.home / "outside"
    outside.mkdir()
    shard.rename(outside / shard.name)
    name = shard.name
    if directory:
        (model / "sub").symlink_to(outside)
        name = f"sub/{shard.name}"
        index = (model / INDEX).read_text().replace(shard.name, name)
        (model / INDEX).write_text(index)
    else:
        shard.symlink_to(outside / shard.name)
    refused(family, words=(model, name, "is a link to", "outside"))


def test_a_missing_shard(family: Family) -> None:
    model = write_model(family.target(1), family.states[1], shards=2)
    (model / "model.safetensors").unlink()
    (model / "model-00002-of-00002.safetensors").unlink()
    refused(family, words=(model, "model-00002-of-00002.safetensors", "missing"))


def test_an_index_without_a_map(family: Family) -> None:
    model = family.target(1)
    (model / "model.safetensors").unlink()
    for text in ("{}", "[]", "{", '{"weight_map": {"w": 3}}'):
        (model / INDEX).write_text(text)
        refused(family, words=(model / INDEX,))


def test_an_index_that_is_wrong_about_a_tensor(family: Family) -> None:
    model = write_model(family.target(1), family.states[1], shards=2)
    (model / "model.safetensors").unlink()
    index = json.loads((model / INDEX).read_text())
    index["weight_map"]["model.none.weight"] = "model-00001-of-00002.safetensors"
    write_json(model / INDEX, index)
    refused(family, words=(model, "model.none.weight"))


# --- models that do not fit together -----------------------------------------------------


def rewrite(family: Family, number: int, **tensors: torch.Tensor | None) -> None:
    """Write a target again with tensors replaced, added or (None) left out."""
    state = {**family.states[number], **tensors}
    write_model(family.target(number), {n: t for n, t in state.items() if t is not None})


def test_a_tensor_missing_in_a_target(family: Family) -> None:
    rewrite(family, 2, **{NORM: None})
    refused(family, words=(f"tensor {NORM}: missing in model {family.target(2)}",))


def test_an_extra_tensor_is_reported(family: Family) -> None:
    rewrite(family, 2, **{"model.extra.weight": torch.ones(2)})
    result = done(family.config, family.out)
    assert f"note: model {family.target(2)}: 1 " in result.out
    assert "model.extra.weight" in result.out


def test_another_shape(family: Family) -> None:
    rewrite(family, 1, **{UP: family.states[1][UP].T.contiguous()})
    message = refused(family, words=(UP, family.base, "[64, 32]", family.target(1), "[32, 64]"))
    assert "--crop-embeddings" not in message
    refused(family, "--crop-embeddings", words=(UP, "[64, 32]", "[32, 64]"))


def test_other_embedding_rows(family: Family) -> None:
    name = "model.embed_tokens.weight"
    rewrite(family, 1, **{name: family.states[1][name][:-2].clone()})
    refused(family, words=(name, "[272, 32]", "[270, 32]", family.target(1), "--crop-embeddings"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float8_e4m3fn, torch.bool])
def test_unsupported_dtype(dtype: torch.dtype, family: Family) -> None:
    rewrite(family, 2, **{NORM: torch.ones(32).to(dtype)})
    code = {torch.int64: "I64", torch.float64: "F64", torch.bool: "BOOL"}.get(dtype, "F8_E4M3")
    refused(family, words=(NORM, code, family.target(2), "BF16, F16, F32"))


def test_many_problems_at_once(family: Family) -> None:
    names = list(family.states[1])
    save_file({"w": torch.ones(1)}, family.target(1) / "model.safetensors")
    message = refused(family, words=(*(f"tensor {n}: missing" for n in names),))
    assert len(message.splitlines()) == 1 + len(names)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite(value: float, family: Family) -> None:
    state = {n: t.clone() for n, t in family.states[2].items()}
    state[UP].view(-1)[:5] = value
    write_model(family.target(2), state)
    refused(family, words=(family.target(2), UP, "5 NaN or infinite", "--nonfinite propagate"))
    done(family.config, family.out, "--nonfinite", "propagate")


def test_nothing_there(family: Family) -> None:
    for entry in family.target(1).iterdir():
        entry.unlink()
    refused(family, words=(family.target(1), "holds no weights"))
    family.target(1).rmdir()
    refused(family, words=(f"{str(family.target(1))!r}: no such directory, nor a hub id",))


def test_a_relative_path_is_shown_with_where_it_was_looked_for(family: Family) -> None:
    family.configure(models=[{"model": "./demo/base"}])
    where = f"'./demo/base': no such directory (seen from {os.getcwd()}), nor a hub id (org/name"
    refused(family, words=(where,))


def test_a_hub_model_that_is_not_cached(family: Family, tmp_path: Path) -> None:
    family.configure(models=[{"model": "org/some-model"}])
    before = snapshot(family.home)
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    ran = spawn(*MERGE, family.config, family.out, env=env)
    assert ran.code == 1
    for word in ("org/some-model", "offline", "hf download"):
        assert word in ran.err
    assert snapshot(family.home) == before


def test_bad_small_files(family: Family) -> None:
    (family.target(1) / "config.json").write_text("{")
    refused(family, words=(family.target(1) / "config.json",))
    write_json(family.target(1) / "config.json", model_config())
    (family.base / "tokenizer_config.json").write_text("[]")
    family.configure(chat_template="{{ messages }}")
    refused(family, words=(family.base / "tokenizer_config.json",))


def test_tokenizers_that_contradict(family: Family) -> None:
    other = json.loads(tokenizer_files()["tokenizer.json"])
    ids = other["model"]["vocab"]
    ids["A"], ids["B"] = ids["B"], ids["A"]
    write_json(family.target(1) / "tokenizer.json", other)
    family.configure(tokenizer_source="base")
    refused(family, words=("token 'A' has id", family.base, family.target(1), "tokenizer_files"))


# --- the config --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_model": ...}, ("base_model", "is required")),
        ({"merge_method": ...}, ("merge_method", "is required")),
        ({"merge_method": "sec"}, ("merge_method", "'sec'", "'sce'")),
        ({"merge_method": "ties"}, ("ties", "not in fuseo1-kernels yet")),
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


@pytest.mark.parametrize("options", [["--cuda"], ["--backend", "cuda"]])
def test_cuda_is_refused(options: list[str], family: Family) -> None:
    message = refused(family, *options, words=("cuda", "cpu"))
    assert "\n" not in message


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
        "from fuseo1_kernels.merge import main\n"
        "sys.exit(main())\n"
    )
    ran = spawn("-c", code, family.config, family.out, "--quiet", "--threads", "1000000")
    assert ran.code == 0, ran.err


# --- OUT ---------------------------------------------------------------------------------


def untouched(family: Family, out: Path, *options: object, words: tuple[object, ...]) -> None:
    before = snapshot(family.home)
    result = run(family.config, out, *options)
    assert result.code == 1
    assert result.out == "" and result.err.count("error: ") == 1
    for word in words:
        assert str(word) in result.err
    assert snapshot(family.home) == before


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
        "from fuseo1_kernels.merge import main\n"
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
