"""Files of models that are links, or no files at all: one rule for all places, and nothing is waited for."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuseo1_kernels import merge_checkpoints
from fuseo1_kernels.cli import verify
from fuseo1_kernels.errors import ConfigError
from support.checkpoint_files import cached_model, tree
from support.models import Family, snapshot, write_model
from support.processes import done, one_error, run
from support.refusals import one_layer_family

SHARDS: dict[str, Any] = {"shards": 2}
BIN: dict[str, Any] = {"torch_bin": True}

#: Files of a model, and how the model is written that has them.
PLACES: dict[str, dict[str, Any]] = {
    "model.safetensors": {},
    "model-00001-of-00002.safetensors": SHARDS,
    "model.safetensors.index.json": SHARDS,
    "pytorch_model.bin": BIN,
    "pytorch_model.bin.index.json": {**BIN, **SHARDS},
    "config.json": {},
    "generation_config.json": {},
    "modules.json": {},
    "preprocessor_config.json": {},
    "tokenizer.json": {},
    "tokenizer_config.json": {},
    "vocab.txt": {},
    "tokenizer.model": {},
    "chat_template.jinja": {},
}


def family_with(home: Path, place: str) -> Family:
    """Three models, the base of which has the file `place`."""
    family = one_layer_family(home)
    shutil.rmtree(family.base)
    write_model(family.base, family.states[0], **PLACES[place])
    file = family.base / place
    if not file.exists():
        file.write_text("{}")
    return family


def move_out(file: Path, directory: Path) -> Path:
    """Move `file` to `directory`, and link to it."""
    directory.mkdir(exist_ok=True)
    moved = Path(shutil.move(file, directory))
    file.symlink_to(moved)
    return moved


# --- links -------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_a_link_out_of_the_model(place: str, tmp_path: Path) -> None:
    family = family_with(tmp_path, place)
    done(family.config, family.home / "expected")
    moved = move_out(family.base / place, tmp_path / "another disk")
    before = snapshot(family.home)
    for argv in ([family.out], [family.out, "--dry-run"]):
        failed = run(family.config, *argv)
        assert failed.code == 1
        for word in (str(family.base), f"{place!r} is a link to {moved}", "--allow-links"):
            assert word in failed.err + failed.out, failed
    assert snapshot(family.home) == before
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    one_error(*_result(family, "--allow-links", elsewhere), f"{place!r} is a link to {moved}")
    done(family.config, family.out, "--allow-links", elsewhere, "--allow-links", moved.parent)
    for name, content in tree(family.out).items():
        if name not in ("README.md", "fuseo1_checksums.json"):
            assert content == (family.home / "expected" / name).read_bytes()


def _result(family: Family, *options: object) -> tuple[int, str]:
    ran = run(family.config, family.out, *options)
    return ran.code, ran.err


@pytest.mark.parametrize("place", PLACES)
def test_a_link_within_the_model(place: str, tmp_path: Path) -> None:
    family = family_with(tmp_path, place)
    move_out(family.base / place, family.base / "there")
    done(family.config, family.out)


def test_links_within_the_hub_cache(tmp_path: Path) -> None:
    """Also where its blobs lie on another disk, or link on to blobs that all models share."""
    family = one_layer_family(tmp_path)
    files = {file.name: file.read_bytes() for file in family.base.iterdir()}
    snapshot = cached_model(tmp_path / "hub", "org/base", files)
    home = snapshot.parents[1]
    family.configure(base_model=str(snapshot))
    done(family.config, family.home / "one")
    move_out(home / "blobs", tmp_path / "disk")
    done(family.config, family.home / "two")
    for blob in (home / "blobs").iterdir():
        move_out(blob, tmp_path / "hub" / "blobs")
    done(family.config, family.home / "three")


def test_a_secret_does_not_get_into_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    family = one_layer_family(tmp_path)
    (family.base / "vocab.txt").symlink_to("/proc/self/environ")
    code, error = _result(family)
    one_error(code, error, "'vocab.txt' is a link to", "environ")
    assert "hf_secret" not in error and not family.out.exists()


def test_a_template_of_a_model_that_lends_nothing_else(tmp_path: Path) -> None:
    family = one_layer_family(tmp_path)
    family.configure(chat_template="auto")
    (tmp_path / "secret").write_text("secret")
    for number in (1, 2):
        (family.target(number) / "chat_template.jinja").symlink_to(tmp_path / "secret")
    one_error(*_result(family), f"{family.target(1)}: 'chat_template.jinja' is a link to")


def test_verify_follows_the_same_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the sources; the model itself is where the user says."""
    family = one_layer_family(tmp_path)
    done(family.config, family.out)
    argv = [str(family.out), "--recompute", "1"]
    moved = move_out(family.base / "model.safetensors", tmp_path / "disk")
    assert verify.main(argv) == 1
    assert f"'model.safetensors' is a link to {moved}" in capsys.readouterr().err
    assert verify.main([*argv, "--allow-links", str(tmp_path / "disk")]) == 0


@pytest.mark.parametrize("value", ["/", ["/nowhere"], [""], [__file__]])
def test_places_of_links_are_directories(value: str | list[str], tmp_path: Path) -> None:
    family = one_layer_family(tmp_path)
    with pytest.raises(ConfigError, match="allow_links: "):
        merge_checkpoints(family.config, family.out, allow_links=value)


# --- what is no file ---------------------------------------------------------------------


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)  # a socket's path is short


KINDS: dict[str, Callable[[Path], None]] = {
    "a directory": Path.mkdir,
    "a named pipe": os.mkfifo,
    "a socket": _socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


def put(kind: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        patch.chdir(path.parent)
        KINDS[kind](path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_no_file_where_a_model_has_one(
    kind: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = family_with(tmp_path, place)
    put(kind, family.base / place, monkeypatch)
    one_error(*_result(family, "--allow-links", "/dev"), f"{family.base / place}: is {kind}")
    assert not family.out.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_where_the_config_is(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = one_layer_family(tmp_path)
    put(kind, family.config, monkeypatch)
    one_error(*_result(family), f"{family.config}: is {kind if 'dir' in kind else 'not a file'}")


def test_the_config_may_come_from_a_shells_pipe(tmp_path: Path) -> None:
    family = one_layer_family(tmp_path)
    reader, writer = os.pipe()
    os.write(writer, family.config.read_bytes())
    os.close(writer)
    done(f"/dev/fd/{reader}", family.out)
    os.close(reader)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["fuseo1_checksums.json", "mergekit_config.yml", "config.json"])
def test_no_file_where_a_merged_model_has_one(
    kind: str,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    family = one_layer_family(tmp_path)
    done(family.config, family.out)
    put(kind, family.out / place, monkeypatch)
    assert verify.main([str(family.out), "--recompute", "1"]) == 1
    assert str(family.out / place) in capsys.readouterr().err
