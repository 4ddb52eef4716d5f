"""Opening a model: single files, shards and their index; reading bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fuseo1_kernels.checkpoint.json_file import dump_object
from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.checkpoint.page_cache import drop, is_cached
from fuseo1_kernels.checkpoint.source import Source
from fuseo1_kernels.errors import CheckpointError
from support.checkpoint_files import (
    TWO,
    Tensors,
    raw_file,
    safetensors_file,
    sharded_model,
    single_model,
)

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
LEFT: Tensors = {"b": ("U8", (4,), b"left")}
RIGHT: Tensors = {"a": ("U8", (5,), b"right"), "e": ("BF16", (0, 7), b"")}


def read(source: Source, name: str, start: int = 0, count: int | None = None) -> bytes:
    info = source.tensors[name]
    buffer = bytearray(info.nbytes - start if count is None else count)
    source.read_into(info, start, memoryview(buffer))
    return bytes(buffer)


def refused(model: Path, message: str) -> None:
    """Opening the model fails with a message that names it."""
    with pytest.raises(CheckpointError, match=message) as caught:
        open_source(str(model))
    assert str(model) in str(caught.value)


# --- one file ----------------------------------------------------------------------------


def test_single_file(tmp_path: Path) -> None:
    path = single_model(tmp_path / "m")
    with open_source(str(path)) as source:
        assert (source.name, source.path) == (str(path), path)
        assert source.config == {"num_hidden_layers": 2}
        assert {name: read(source, name) for name in source.tensors} == {
            name: content for name, (_, _, content) in TWO.items()
        }
        assert read(source, "a", 5, 3) == bytes([5, 6, 7])
        assert read(source, "a", 12, 0) == b""


def test_a_view_of_any_format_is_filled(tmp_path: Path) -> None:
    with open_source(str(single_model(tmp_path))) as source:
        buffer = torch.zeros(2, 3, dtype=torch.int16).numpy()
        source.read_into(source.tensors["a"], 0, memoryview(buffer))  # type: ignore[arg-type]
        assert buffer.tobytes() == TWO["a"][2]


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (11, 2), (13, 0)])
def test_reads_outside_of_a_tensor(start: int, count: int, tmp_path: Path) -> None:
    with open_source(str(single_model(tmp_path))) as source, pytest.raises(ValueError, match="'a'"):
        read(source, "a", start, count)


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux moves at most 2,147,479,552 bytes a call; here, three."""
    real = os.preadv

    def short(fd: int, buffers: list[memoryview], offset: int, *flags: int) -> int:
        return real(fd, [buffers[0][:3]], offset, *flags)

    monkeypatch.setattr(os, "preadv", short)
    with open_source(str(single_model(tmp_path))) as source:
        assert read(source, "a", 1) == TWO["a"][2][1:]


def test_many_threads_share_a_source(tmp_path: Path) -> None:
    tensors: Tensors = {f"t{i}": ("U8", (1000,), bytes([i]) * 1000) for i in range(64)}
    with open_source(str(single_model(tmp_path, tensors))) as source, ThreadPoolExecutor(8) as pool:
        before = len(os.listdir("/proc/self/fd"))
        results = pool.map(lambda name: (name, read(source, name)), list(tensors) * 4)
        assert all(content == tensors[name][2] for name, content in results)
        # One for the kernels, one for what is read from begin to end.
        assert len(os.listdir("/proc/self/fd")) == before + 2
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_file_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = single_model(tmp_path)
    with open_source(str(path)) as source:
        read(source, "a")
        os.truncate(path / "model.safetensors", source.tensors["b"].offset + 1)
        with pytest.raises(CheckpointError, match=r"model.safetensors: the file shrank .*'b'"):
            read(source, "b")


def test_the_file_changed_since_its_header_was_read(tmp_path: Path) -> None:
    path = single_model(tmp_path)
    with open_source(str(path)) as source:
        with open(path / "model.safetensors", "ab") as stream:
            stream.write(b"more")
        for _ in range(2):
            with pytest.raises(CheckpointError, match="changed since"):
                read(source, "a")


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Source]:
    """Neighbours of five MiB and a bit, of which nothing is in the page cache."""
    sizes = {"a": 5_300_001, "b": 5_400_003, "c": 5_500_005}
    tensors: Tensors = {name: ("U8", (n,), os.urandom(n)) for name, n in sizes.items()}
    with open_source(str(single_model(tmp_path, tensors))) as source:
        with open(tmp_path / "model.safetensors", "rb") as stream:
            os.fdatasync(stream.fileno())
            drop(stream.fileno(), 0, 0)
        yield source


def bring(source: Source) -> None:
    for info in source.tensors.values():
        source.read_ahead(info, 0, info.nbytes)
        assert source.is_cached(info)


def is_byte_cached(source: Source, name: str, byte: int) -> bool | None:
    """Whether the page is cached in which a byte of a tensor lies."""
    with source.place(source.tensors[name]) as (fd, offset):
        return is_cached(fd, offset + byte, 1)


def test_a_tensor_is_read_ahead_in_parts(three: Source) -> None:
    """The system may also read bytes behind those that it was asked for."""
    b = three.tensors["b"]
    assert not any(three.is_cached(info) for info in three.tensors.values())
    three.read_ahead(b, 0, 100)
    assert is_byte_cached(three, "b", 99) and not three.is_cached(b)
    three.read_ahead(b, 100, 2 * b.nbytes)
    assert three.is_cached(b)
    assert not three.is_cached(three.tensors["a"])


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_page_is_forgotten_with_the_last_tensor_that_has_a_part_of_it(
    order: str, three: Source
) -> None:
    bring(three)
    first, second = (three.tensors[name] for name in order)
    three.forget(first)
    assert not three.is_cached(first)
    assert three.is_cached(second) and three.is_cached(three.tensors["c"])
    assert is_byte_cached(three, "b", 0)
    three.forget(second)
    assert not three.is_cached(second)
    # Only the pages that the tensors share with `c` or with the file's header are left.
    end = three.tensors["b"].nbytes
    assert not any(is_byte_cached(three, "b", at) for at in range(0, end - (2 << 20), 4096))
    begin = three.tensors["a"].nbytes
    assert not any(is_byte_cached(three, "a", at) for at in range(2 << 20, begin, 4096))
    assert three.is_cached(three.tensors["c"])


def test_a_tensor_between_others_is_forgotten_last(three: Source) -> None:
    bring(three)
    for name in "acb":
        assert three.is_cached(three.tensors["b"])
        three.forget(three.tensors[name])
    with three.place(three.tensors["a"]) as (fd, begin):
        end = os.fstat(fd).st_size
        assert not any(is_cached(fd, at, 1) for at in range(begin + (2 << 20), end, 4096))


def test_a_tensor_is_dropped_piece_by_piece(three: Source) -> None:
    b = three.tensors["b"]
    bring(three)
    for start in range(0, b.nbytes, 1_000_000):
        assert is_byte_cached(three, "b", start + 4096)
        three.drop(b, start, 1_000_000)
    inner = range(2 << 20, b.nbytes - (2 << 20), 4096)
    assert not any(is_byte_cached(three, "b", at) for at in inner)
    assert three.is_cached(three.tensors["a"]) and three.is_cached(three.tensors["c"])


def test_the_file_vanished(tmp_path: Path) -> None:
    path = single_model(tmp_path)
    with open_source(str(path)) as source:
        (path / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match="cannot be opened"):
            read(source, "a")


def test_a_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with open_source(str(single_model(tmp_path))) as source:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(CheckpointError, match=r"tensor 'a' failed \(Input/output error\)"):
            read(source, "a")


def test_no_weights(tmp_path: Path) -> None:
    refused(tmp_path, "looked for model.safetensors, .*index.json, pytorch_model.bin, ")


def test_a_file_is_no_model(tmp_path: Path) -> None:
    refused(single_model(tmp_path) / "model.safetensors", "is a file; give the directory")


def test_bad_header_is_refused_when_opened(tmp_path: Path) -> None:
    raw_file(tmp_path / "model.safetensors", b"nonsense")
    refused(tmp_path, "model.safetensors: not a safetensors file")


@pytest.mark.parametrize("text", ["[]", "{", "\udcff"])
def test_bad_config(text: str, tmp_path: Path) -> None:
    path = single_model(tmp_path)
    (path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(path, "config.json: (must be a JSON object|not valid JSON|not UTF-8)")


@pytest.mark.parametrize("levels", [150, 600])
def test_a_config_nested_too_deeply(levels: int, tmp_path: Path) -> None:
    """Some such can be parsed, but then be neither compared nor written."""
    path = single_model(tmp_path)
    (path / "config.json").write_text('{"architectures": ' + "[" * levels + "]" * levels + "}")
    refused(path, "config.json: nested more than 100 levels deep")


def test_half_a_surrogate_in_a_config_is_kept(tmp_path: Path) -> None:
    path = single_model(tmp_path, note="\ud800")
    with open_source(str(path)) as source:
        assert json.loads(dump_object(source.config)) == source.config
        assert source.config["note"] == "\ud800"


# --- shards and their index --------------------------------------------------------------


def test_shards(tmp_path: Path) -> None:
    path = sharded_model(tmp_path / "m", {FIRST: LEFT, SECOND: RIGHT})
    with open_source(str(path)) as source:
        assert list(source.tensors) == ["b", "a", "e"]
        assert source.tensors["a"].file == path / SECOND
        assert [read(source, name) for name in source.tensors] == [b"left", b"right", b""]


def test_a_single_file_goes_before_an_index(tmp_path: Path) -> None:
    path = single_model(sharded_model(tmp_path, {FIRST: LEFT}))
    with open_source(str(path)) as source:
        assert source.tensors.keys() == TWO.keys()


def test_shards_in_a_subdirectory(tmp_path: Path) -> None:
    with open_source(str(sharded_model(tmp_path, {"weights/1.safetensors": LEFT}))) as source:
        assert read(source, "b") == b"left"


def test_the_model_directory_may_be_a_link(tmp_path: Path) -> None:
    sharded_model(tmp_path / "real", {FIRST: LEFT})
    (tmp_path / "link").symlink_to("real")
    with open_source(str(tmp_path / "link")) as source:
        assert read(source, "b") == b"left"


@pytest.mark.parametrize(
    "shard", ["../../x", "../m2/model.safetensors", "sub/../../m2/x", "/etc/passwd", ""]
)
def test_an_index_that_leaves_the_directory(shard: str, tmp_path: Path) -> None:
    single_model(tmp_path / "m2")
    path = sharded_model(tmp_path / "m", {FIRST: LEFT}, c=shard)
    refused(path, f"index.json: weight_map sends tensor 'c' to '{shard}'")


@pytest.mark.parametrize("through_directory", [False, True])
def test_a_link_out_of_the_directory(through_directory: bool, tmp_path: Path) -> None:
    outside = safetensors_file(tmp_path / "outside" / "x.safetensors", RIGHT)
    path = tmp_path / "m"
    shard = "sub/x.safetensors" if through_directory else "x.safetensors"
    sharded_model(path, {FIRST: LEFT}, a=shard, e=shard)
    if through_directory:
        (path / "sub").symlink_to(outside.parent)
    else:
        (path / shard).symlink_to(outside)
    refused(path, f"'{shard}' is a link to {outside}, outside of the model's directory")


@pytest.mark.parametrize("shard", [SECOND, "nul\0byte", "half\ud800"])
def test_a_missing_shard(shard: str, tmp_path: Path) -> None:
    refused(
        sharded_model(tmp_path, {FIRST: LEFT}, c=shard), "names the shard '.*', which is missing"
    )


def test_a_link_that_leads_nowhere_or_round(tmp_path: Path) -> None:
    path = sharded_model(tmp_path, {FIRST: LEFT}, c=SECOND)
    (path / SECOND).symlink_to("gone")
    refused(path, f"'{SECOND}', which is missing")
    (path / "gone").symlink_to(SECOND)
    refused(path, f"'{SECOND}', which is missing")


def test_a_tensor_that_is_not_where_the_index_says(tmp_path: Path) -> None:
    path = sharded_model(tmp_path, {FIRST: LEFT, SECOND: RIGHT}, b=SECOND)
    refused(path, f"tensor 'b' is in {SECOND}, but it is not")
    path = sharded_model(tmp_path, {FIRST: LEFT, SECOND: RIGHT}, c=SECOND)
    refused(path, f"tensor 'c' is in {SECOND}, but it is not")


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    path = sharded_model(tmp_path, {FIRST: {**LEFT, "c": TWO["b"]}, SECOND: {**RIGHT, **LEFT}})
    refused(path, f"tensor 'b' stands in two shards, {FIRST} and {SECOND}")


def test_a_tensor_that_the_index_does_not_list(tmp_path: Path) -> None:
    path = sharded_model(tmp_path, {FIRST: LEFT})
    safetensors_file(path / FIRST, {**LEFT, **RIGHT})
    refused(path, f"tensor 'a' in {FIRST} is not listed in the index")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{}", "has no 'weight_map'"),
        ('{"weight_map": {}}', "has no 'weight_map'"),
        ('{"weight_map": []}', "has no 'weight_map'"),
        ('{"weight_map": {"a": 1}}', "weight_map gives tensor 'a' no file name but 1"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "'a' stands twice"),
        ("nonsense", "not valid JSON"),
    ],
)
def test_bad_index(index: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    refused(tmp_path, f"index.json: {message}")
