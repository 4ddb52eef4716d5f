"""--overwrite: a model's own files are replaced, and nothing else of the user's is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from fuseo1_kernels.checkpoint.checksums import Options, make_checksums
from fuseo1_kernels.checkpoint.files import is_inner_name
from fuseo1_kernels.checkpoint.out_dir import check_out_dir
from fuseo1_kernels.checkpoint.partial import Partial
from fuseo1_kernels.errors import OutputError
from support.checkpoint_files import TWO, sharded_model, single_model, tree, write_json
from support.kept_files import IDENTITY
from support.models import snapshot


def files(directory: Path, *names: str) -> Path:
    """Make files of these names, with folders, below `directory`; names that end in "/" are folders."""
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        else:
            (directory / name).write_bytes(b"mine")
    return directory


def model_and(*names: str) -> Callable[[Path], Path]:
    return lambda out: files(single_model(out), *names)


def recorded(*names: str) -> Callable[[Path], Path]:
    """A merge of ours that recorded these small files."""

    def make(out: Path) -> Path:
        files(single_model(out), *names)
        options = Options(crop_embeddings=False, nonfinite="error", random_seed=0)
        inner = dict.fromkeys((name for name in names if is_inner_name(name)), b"mine")
        record = make_checksums(
            made_by="", merge="0" * 32, options=options, files=inner, shards=[], tensors={}
        )
        (out / "fuseo1_checksums.json").write_bytes(record)
        return out

    return make


def listed_by_an_index(out: Path) -> Path:
    index = {"weight_map": {"a": "src/main.py", "b": "model-00001-of-00001.safetensors"}}
    write_json(out / "model.safetensors.index.json", index)
    return files(out, *index["weight_map"].values())


def recorded_by_nobody(out: Path) -> Path:
    """A record without its own checksum."""
    entries = {"thesis.tex": {"size": 4, "checksum": "0" * 32}}
    write_json(out / "fuseo1_checksums.json", {"files": entries, "shards": {}})
    return files(single_model(out), "thesis.tex")


def linked(out: Path) -> Path:
    files(single_model(out).parent / "mine", "x")
    (out / "tokenizer.json").symlink_to("../mine/x")
    return out


#: Directories that hold more than a model, and what the refusal names.
REFUSED: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "a git project": (
        model_and(".git/HEAD", "src/main.py", "pyproject.toml", "README.md"),
        (".git/", "src/", "pyproject.toml"),
    ),
    "a folder of models": (
        lambda out: single_model(single_model(out / "qwen").parent / "llama").parents[0],
        ("does not look like a model",),
    ),
    "a folder of models with a stray file": (
        lambda out: single_model(single_model(single_model(out / "qwen").parent) / "llama").parent,
        ("llama/, qwen/",),
    ),
    "a folder of loose weights": (
        lambda out: files(single_model(out), "sd_xl_base.safetensors", "lora.safetensors"),
        ("lora.safetensors, sd_xl_base.safetensors",),
    ),
    "a home with a stray file": (
        model_and(".bashrc", ".ssh/id_ed25519", "Documents/", ".cache/pip/x"),
        (".bashrc", ".ssh/", "Documents/", ".cache/pip/"),
    ),
    "a hub cache": (model_and(".cache/huggingface/hub/x"), (".cache/huggingface/hub/",)),
    "a training run": (
        model_and(
            "checkpoint-500/optimizer.pt", "runs/", "training_args.bin", "trainer_state.json"
        ),
        ("checkpoint-500/", "runs/", "trainer_state.json", "training_args.bin"),
    ),
    "notes beside a model": (model_and("thesis.txt"), ("thesis.txt",)),
    "a virtual environment below it": (model_and("venv/"), ("venv/",)),
    "many things": (model_and(*map(str, range(9))), ("0, 1, 2, 3, 4 and 4 more",)),
    "no model": (lambda out: files(out, "README.md", "LICENSE"), ("does not look like a model",)),
    "a config alone": (lambda out: files(out, "config.json"), ("does not look like a model",)),
    "a merge of ours and a file": (recorded("README.md", "mine/"), ("mine/",)),
    "an index of more than weights": (listed_by_an_index, ("src/",)),
    "a record that no merge wrote": (recorded_by_nobody, ("thesis.tex",)),
    "a record that lists what is hidden": (recorded(".ssh/key", "../x"), (".ssh/",)),
    "a link to a folder": (lambda out: _link(single_model(out) / "1_Pooling"), ("1_Pooling",)),
    "a pipe": (lambda out: _pipe(single_model(out) / "vocab.json"), ("vocab.json",)),
    "a strange name": (model_and("a\x1b[2Jb"), (r"'a\x1b[2Jb'",)),
}

#: Directories that hold a model alone.
MODELS: dict[str, Callable[[Path], Path]] = {
    "one of a single file": single_model,
    "one in shards": lambda out: sharded_model(out, {"model-00001-of-00001.safetensors": TWO}),
    "one in shards with names of its own": lambda out: sharded_model(out, {"w/1.safetensors": TWO}),
    "one of torch's files": lambda out: files(out, "config.json", "pytorch_model.bin"),
    "one from the hub": model_and(
        ".gitattributes", "README.md", "LICENSE", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
        "chat_template.jinja", "preprocessor_config.json", "modeling_phi.py", "tokenizer.model",
        "additional_chat_templates/tool_use.jinja", ".cache/huggingface/.gitignore",
        ".cache/huggingface/download/config.json.metadata",
    ),
    "an embedding model": model_and(
        "modules.json", "sentence_bert_config.json", "1_Pooling/config.json",
        "2_Dense/model.safetensors", "2_Dense/config.json", "3_Normalize/",
    ),
    "a merge of ours": recorded("README.md", "mergekit_config.yml", "assets/logo.png"),
    "one with a link": linked,
}  # fmt: skip


def _link(path: Path) -> Path:
    path.symlink_to("..")
    return path.parent


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path.parent


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_a_models(kind: str, tmp_path: Path) -> None:
    make, words = REFUSED[kind]
    make(tmp_path / "out")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match="delete") as caught:
        check_out_dir(tmp_path / "out", overwrite=True, inputs=[])
    for word in (str(tmp_path / "out"), *words):
        assert word in str(caught.value)
    assert snapshot(tmp_path) == before


def publish(out: Path) -> None:
    partial = Partial(out)
    partial.restart(IDENTITY)
    os.close(partial.open_model())
    files(partial.model, "model.safetensors")
    partial.publish(overwrite=True)


@pytest.mark.parametrize("kind", MODELS)
def test_models_are_replaced_whole(kind: str, tmp_path: Path) -> None:
    """The merge deletes what the look at OUT listed, and nothing else."""
    out = tmp_path / "out"
    MODELS[kind](out)
    beside = {name for name in tree(tmp_path) if not name.startswith("out")}
    deletes = check_out_dir(out, overwrite=True, inputs=[])
    entries = {str(path.relative_to(out)) for path in out.rglob("*")}
    assert {name.rstrip("/") for name in deletes} == entries
    publish(out)
    assert tree(tmp_path).keys() == {"out", "out/model.safetensors"} | beside


@pytest.mark.parametrize("steps", ["one", "two"])
def test_what_comes_to_out_at_the_last_moment_is_kept(
    steps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fuseo1_kernels.checkpoint import partial

    out = single_model(tmp_path / "out")
    real = partial._rename_exchange

    def exchange(name: str, path: Path, *, src_dir_fd: int) -> None:
        files(out, "thesis.tex", "1_Pooling/data.csv")
        if steps == "two":
            raise OSError(22, "Invalid argument")
        real(name, path, src_dir_fd=src_dir_fd)

    monkeypatch.setattr(partial, "_rename_exchange", exchange)
    folder = "model" if steps == "one" else "replaced"
    with pytest.warns(UserWarning, match=f"holds {folder}/1_Pooling/data.csv, {folder}/thesis.tex"):
        publish(out)
    kept = {f"out.partial/{folder}/{name}" for name in ("thesis.tex", "1_Pooling/data.csv")}
    there = {path for path, content in tree(tmp_path).items() if content is not None}
    assert there == {"out/model.safetensors"} | kept
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=f"something else is there, {folder}"):
        Partial(out)
    assert tree(tmp_path) == before


# --- places ------------------------------------------------------------------------------


def test_places_that_are_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where there is a model, or nothing."""
    for name in ("parent/home", "parent/work", "mounted/disk"):
        single_model(tmp_path / name)
    monkeypatch.chdir(tmp_path / "parent/work")
    monkeypatch.setenv("HOME", str(tmp_path / "parent/home"))
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"36 35 98:0 /x {tmp_path}/mounted/my\\040disk rw - ext4 /dev/sda rw\n")
    monkeypatch.setattr("fuseo1_kernels.checkpoint.out_dir._MOUNTS", mounts)
    (tmp_path / "link").symlink_to("parent/home")
    (tmp_path / "mounted/my disk").mkdir()
    places: Iterable[tuple[str | Path, str]] = [
        ("", "OUT is empty"),
        (Path(""), "is the current directory"),
        (".", "is the current directory"),
        ("..", "contains .*, the current directory"),
        ("/", "contains"),
        ("/proc", "is a mount point"),
        (tmp_path / "parent", "contains"),
        (tmp_path / "parent/home", "is the home directory"),
        (tmp_path / "link", "is the home directory"),
        (tmp_path / "mounted/my disk", "is a mount point"),
        (tmp_path / "mounted", "contains .*/mounted/my disk, a mount point"),
    ]
    before = tree(tmp_path)
    for place, word in places:
        for overwrite in (False, True):
            with pytest.raises(OutputError, match=word):
                check_out_dir(place, overwrite=overwrite, inputs=[])
    assert tree(tmp_path) == before
    monkeypatch.setenv("HOME", "/nowhere")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert check_out_dir(tmp_path / "new", overwrite=False, inputs=[]) == []


def test_weights_that_a_source_has_there(tmp_path: Path) -> None:
    """By a link: the model lies elsewhere, and would lose them."""
    out = single_model(tmp_path / "out")
    (tmp_path / "source").mkdir()
    shard = tmp_path / "source" / "model.safetensors"
    shard.symlink_to(out / "model.safetensors")
    with pytest.raises(OutputError, match="contains the input model"):
        check_out_dir(out, overwrite=True, inputs=[tmp_path / "source", shard])
