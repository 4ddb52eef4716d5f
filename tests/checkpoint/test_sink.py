"""The output: shards planned to the byte, written in any order, published only when whole."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from fuseo1_kernels.checkpoint import partial
from fuseo1_kernels.checkpoint.header import read_header
from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.checkpoint.shards import OutputTensor, Shard, index_json, plan_shards
from fuseo1_kernels.checkpoint.sink import Sink
from fuseo1_kernels.errors import OutputError
from support.checkpoint_files import single_model, tree
from support.kept_files import IDENTITY

TENSORS = (
    OutputTensor("w", "BF16", (5, 7)),
    OutputTensor("scalar", "F32", ()),
    OutputTensor("empty", "F16", (3, 0)),
    OutputTensor("a", "F16", (40,)),
)
CONTENT = {t.name: bytes((i + len(t.name)) % 251 for i in range(t.nbytes)) for t in TENSORS}


def make(
    out: Path, *, shard_size: int = 100, overwrite: bool = False, inputs: Sequence[Path] = ()
) -> Sink:
    shards = plan_shards(TENSORS, shard_size)
    return Sink(out, shards, IDENTITY, overwrite=overwrite, inputs=inputs)


def fill(sink: Sink) -> None:
    for name, content in CONTENT.items():
        sink.write(name, 0, memoryview(content))


def refused(
    out: Path, message: str, *, overwrite: bool = False, inputs: Sequence[Path] = ()
) -> None:
    """A sink cannot be made, says why, and leaves everything as it was."""
    top = out.parent
    while not top.is_dir():
        top = top.parent
    before = tree(top)
    with pytest.raises(OutputError, match=message) as caught:
        make(out, overwrite=overwrite, inputs=inputs)
    assert str(out) in str(caught.value)
    assert tree(top) == before


# --- the plan ----------------------------------------------------------------------------


def test_one_shard() -> None:
    [shard] = plan_shards(TENSORS, 10**9)
    assert shard.file == "model.safetensors"
    assert shard.tensors == TENSORS
    assert shard.size == len(shard.header) + 70 + 4 + 80
    assert shard.offsets["scalar"] == len(shard.header) + 70
    assert index_json([shard]) is None


def test_several_shards_and_their_index() -> None:
    shards = plan_shards(TENSORS, 80)
    assert [(s.file, [t.name for t in s.tensors]) for s in shards] == [
        ("model-00001-of-00002.safetensors", ["w", "scalar", "empty"]),
        ("model-00002-of-00002.safetensors", ["a"]),
    ]
    content = index_json(shards)
    assert content is not None
    index = json.loads(content)
    assert index["metadata"] == {"total_size": 154}
    assert list(index["weight_map"]) == ["a", "empty", "scalar", "w"]
    assert index["weight_map"]["scalar"] == "model-00001-of-00002.safetensors"


sizes = st.lists(st.integers(0, 30), max_size=20)


@given(sizes=sizes, shard_size=st.integers(1, 60))
def test_shards_are_filled_greedily_in_order(sizes: list[int], shard_size: int) -> None:
    tensors = [OutputTensor(f"t{i}", "U8", (size,)) for i, size in enumerate(sizes)]
    shards = plan_shards(tensors, shard_size)
    assert [t for s in shards for t in s.tensors] == tensors
    held = [sum(t.nbytes for t in s.tensors) for s in shards]
    for shard, size in zip(shards, held, strict=True):
        assert size <= shard_size or len(shard.tensors) == 1
        assert shard.size == len(shard.header) + size
    for this, following in zip(range(len(shards)), shards[1:], strict=False):
        assert held[this] + following.tensors[0].nbytes > shard_size


@pytest.mark.parametrize("shard_size", [0, -1])
def test_bad_shard_size(shard_size: int) -> None:
    with pytest.raises(OutputError, match=f"at least one byte, not {shard_size}"):
        plan_shards(TENSORS, shard_size)


@pytest.mark.parametrize("shard_size", [1, 10**9])
def test_a_name_twice(shard_size: int) -> None:
    with pytest.raises(ValueError, match="twice"):
        plan_shards([TENSORS[0], TENSORS[0]], shard_size)


# --- writing and publishing --------------------------------------------------------------


@pytest.mark.parametrize("shard_size", [1, 80, 10**9])
def test_a_whole_model(shard_size: int, tmp_path: Path) -> None:
    out = tmp_path / "new" / "parents" / "out"
    shards = plan_shards(TENSORS, shard_size)
    with Sink(out, shards, IDENTITY, overwrite=False, inputs=[]) as sink:
        chunks = [(n, i, c[i : i + 3]) for n, c in CONTENT.items() for i in range(0, len(c), 3)]
        random.Random(0).shuffle(chunks)
        with ThreadPoolExecutor(4) as pool:
            list(
                pool.map(lambda chunk: sink.write(chunk[0], chunk[1], memoryview(chunk[2])), chunks)
            )
        index = index_json(shards)
        if index is not None:
            sink.add_file("model.safetensors.index.json", index)
        sink.add_file("config.json", b"{}")
        assert not out.exists()
        sink.publish()

    assert [entry.name for entry in out.parent.iterdir()] == ["out"]
    for shard in shards:
        file = out / shard.file
        assert file.stat().st_size == shard.size
        assert read_header(file).metadata == {"format": "pt"}
        for name, view in safetensors.deserialize(file.read_bytes()):
            assert bytes(view["data"]) == CONTENT[name]
    with open_source(str(out)) as source:
        assert list(source.tensors) == [t.name for t in TENSORS]
        for tensor in TENSORS:
            info = source.tensors[tensor.name]
            assert (info.dtype, info.shape) == (tensor.dtype, tensor.shape)


def test_the_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").touch()
    with make(tmp_path / "out") as sink:
        fill(sink)
        sink.add_file("config.json", b"{}")
        sink.publish()
    modes = {entry.name: entry.stat().st_mode for entry in tmp_path.rglob("*")}
    assert modes["out"] == modes["plain"]
    assert {modes[name] for name in modes if "." in name} == {modes["file"]}


LARGE = OutputTensor("large", "U8", (10_000,))  # which fills pages of its own
MANY = bytes(i % 251 for i in range(LARGE.nbytes))


def test_a_view_of_any_format_is_written(tmp_path: Path) -> None:
    [shard] = shards = plan_shards([OutputTensor("x", "F32", (2, 2))], 100)
    with Sink(tmp_path / "out", shards, IDENTITY, overwrite=False, inputs=[]) as sink:
        view = memoryview(bytes(range(16))).cast("f", (2, 2))
        sink.write("x", 0, view)  # type: ignore[arg-type]
        sink.publish()
    assert (tmp_path / "out" / shard.file).read_bytes() == shard.header + bytes(range(16))


@pytest.mark.parametrize(
    ("skipped", "message"),
    [("a", r"1 tensors are not whole, first 'a' \(80 bytes"), ("scalar", r"'scalar' \(4 bytes")],
)
def test_a_tensor_that_was_not_written(skipped: str, message: str, tmp_path: Path) -> None:
    with make(tmp_path / "out") as sink:
        for name, content in CONTENT.items():
            if name != skipped:
                sink.write(name, 0, memoryview(content))
        with pytest.raises(OutputError, match=message):
            sink.publish()
    assert not any(tmp_path.iterdir())


def test_bytes_written_short_or_twice(tmp_path: Path) -> None:
    for last in (79, 80):
        with make(tmp_path / "out") as sink:
            fill(sink)
            sink.write("a", 0, memoryview(CONTENT["a"])[:last])
            with pytest.raises(OutputError, match="not published"):
                sink.publish()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("start", "count"), [(-1, 4), (77, 4), (81, 0)])
def test_writes_outside_of_a_tensor(start: int, count: int, tmp_path: Path) -> None:
    with make(tmp_path / "out") as sink, pytest.raises(ValueError, match="'a' has 80 bytes"):
        sink.write("a", start, memoryview(bytes(count)))


@pytest.mark.parametrize("name", ["../x", "sub/../x", "sub//x", "sub/", "/x", "", ".", ".."])
def test_small_files_stay_in_the_directory(name: str, tmp_path: Path) -> None:
    with (
        make(tmp_path / "out") as sink,
        pytest.raises(ValueError, match="not the name of a small file"),
    ):
        sink.add_file(name, b"")


def test_a_small_file_cannot_replace_a_shard(tmp_path: Path) -> None:
    with make(tmp_path / "out", shard_size=10**9) as sink:
        fill(sink)
        with pytest.raises(ValueError, match=r"model.safetensors' is not the name"):
            sink.add_file("model.safetensors", b"")


class Stop(Exception):
    pass


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failed_merge_leaves_nothing(overwrite: bool, tmp_path: Path) -> None:
    if overwrite:
        single_model(tmp_path / "out")
    before = tree(tmp_path)
    with pytest.raises(Stop), make(tmp_path / "out", overwrite=overwrite) as sink:
        fill(sink)
        sink.add_file("config.json", b"{}")
        raise Stop
    sink.close()
    assert tree(tmp_path) == before


def test_parents_that_were_made_go_too_unless_used(tmp_path: Path) -> None:
    with make(tmp_path / "a" / "b" / "out"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    with make(tmp_path / "a" / "b" / "out"):
        (tmp_path / "a" / "other").touch()
    assert tree(tmp_path) == {"a": None, "a/other": b""}


# --- where it may be written -------------------------------------------------------------


def test_an_empty_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for overwrite in (False, True):
        with make(tmp_path / "out", overwrite=overwrite) as sink:
            fill(sink)
            sink.publish()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_directory_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with make(tmp_path / "link") as sink:
        fill(sink)
        sink.publish()
    assert (tmp_path / "link").is_symlink()
    assert len(list((tmp_path / "real").iterdir())) == 2


def test_overwrite_replaces_the_whole_model(tmp_path: Path) -> None:
    out = single_model(tmp_path / "out")
    (out / "merges.txt").touch()
    with make(out, overwrite=True, shard_size=10**9) as sink:
        fill(sink)
        sink.add_file("1_Pooling/config.json", b"{}")
        assert (out / "merges.txt").exists()
        sink.publish()
    files = {"out/model.safetensors", "out/1_Pooling", "out/1_Pooling/config.json"}
    assert tree(tmp_path).keys() == {"out", *files}


def test_the_old_model_comes_back_when_the_new_one_cannot_be_moved_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = single_model(tmp_path / "out")
    before = tree(tmp_path)
    real = os.rename

    def exchange(name: str, path: Path, *, src_dir_fd: int) -> None:
        raise OSError(errno.EINVAL, "not on this file system")

    def rename(source: str | Path, target: Path, **directories: int) -> None:
        if source == "model":
            raise OSError(errno.EIO, "Input/output error")
        real(source, target, **directories)

    with make(out, overwrite=True) as sink:
        fill(sink)
        monkeypatch.setattr(partial, "_rename_exchange", exchange)
        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(OutputError, match=r"cannot be published \(Input/output error\)"):
            sink.publish()
    assert tree(tmp_path) == before


def test_someone_else_fills_out_meanwhile(tmp_path: Path) -> None:
    with make(tmp_path / "out") as sink:
        fill(sink)
        single_model(tmp_path / "out")
        before = tree(tmp_path / "out")
        with pytest.raises(OutputError, match="cannot be published"):
            sink.publish()
    assert tree(tmp_path / "out") == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


# --- a disk that refuses -----------------------------------------------------------------


def test_no_space_left(tmp_path: Path) -> None:
    shards = plan_shards([OutputTensor("w", "F32", (2**24, 2**24))], 2**60)
    with pytest.raises(
        OutputError, match=rf"no space left: .* needs {shards[0].size} bytes, \d+ are"
    ):
        Sink(tmp_path / "a" / "out", shards, IDENTITY, overwrite=False, inputs=[])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "no space left: .* needs"), (errno.EFBIG, "cannot be created with .* bytes")],
)
def test_space_cannot_be_reserved(
    code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, offset: int, size: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    refused(tmp_path / "out", message)


def test_shards_have_their_size_before_anything_is_merged(tmp_path: Path) -> None:
    shards: tuple[Shard, ...] = plan_shards(TENSORS, 80)
    with Sink(tmp_path / "out", shards, IDENTITY, overwrite=False, inputs=[]):
        temp = tmp_path / "out.partial" / "model"
        for shard in shards:
            content = (temp / shard.file).read_bytes()
            assert content == shard.header.ljust(shard.size, b"\0")
            assert (temp / shard.file).stat().st_blocks * 512 >= shard.size


@pytest.mark.parametrize("call", ["pwrite", "pwritev"])
def test_a_write_that_fails(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a part of a page, or of whole pages."""

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    shards = plan_shards([*TENSORS, LARGE], 10**9)
    with Sink(tmp_path / "out", shards, IDENTITY, overwrite=False, inputs=[]) as sink:
        fill(sink)
        monkeypatch.setattr(os, call, fail)
        with pytest.raises(
            OutputError, match=r"model.safetensors: writing tensor 'large' failed \(No sp"
        ):
            sink.write("large", 0, memoryview(MANY))
        with pytest.raises(OutputError, match="not published"):
            sink.publish()
    assert not any(tmp_path.iterdir())
