"""Models that cannot be merged: a clear message, exit code 1, OUT untouched, nothing half-written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from support.checkpoint_files import raw_file, write_json
from support.models import Family, model_config, snapshot, tokenizer_files, write_model
from support.processes import MERGE, done, spawn
from support.refusals import NORM, UP, one_layer_family, refused

INDEX = "model.safetensors.index.json"


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return one_layer_family(tmp_path)


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
