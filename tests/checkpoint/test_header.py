"""The safetensors header: all that the format demands, beside the safetensors library."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fuseo1_kernels.checkpoint.header import (
    ALIGNMENT,
    DTYPE_BYTES,
    MAX_HEADER_BYTES,
    TensorInfo,
    read_header,
    write_header,
)
from fuseo1_kernels.checkpoint.identity import FileIdentity
from fuseo1_kernels.errors import CheckpointError
from support.checkpoint_files import TWO, raw_file, safetensors_file

FILE_PER_CLASS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def entry(begin: Any = 0, end: Any = 4, shape: Any = (2,), dtype: Any = "BF16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_places_and_metadata(tmp_path: Path) -> None:
    file = safetensors_file(tmp_path / "m.safetensors", TWO)
    header = read_header(file)
    start = file.stat().st_size - 16
    assert header.tensors == {
        "a": TensorInfo("a", "BF16", (2, 3), file, start, 12),
        "b": TensorInfo("b", "F32", (), file, start + 12, 4),
    }
    assert header.metadata == {"format": "pt"}
    assert header.identity == FileIdentity.of(file.stat())
    assert header.tensors["a"].numel == 6
    assert header.tensors["b"].numel == 1


def test_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    file = raw_file(
        tmp_path / "m", {"z": entry(4, 8), "e": entry(4, 4, (0,)), "a": entry()}, b"8" * 8
    )
    assert list(read_header(file).tensors) == ["a", "e", "z"]


def test_no_tensors_at_all(tmp_path: Path) -> None:
    assert read_header(raw_file(tmp_path / "m", b"{}  ")).tensors == {}


BAD: dict[str, tuple[Any, bytes, str]] = {
    "not JSON": (b'{"a": ', b"", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not UTF-8"),
    "a list": (b"[]", b"", "does not start with"),
    "space first": (b" {}", b"", "does not start with"),
    "an absurd nesting": (b'{"a":' * 50_000, b"", "not valid JSON"),
    "an absurd number": (b'{"a":' + b"1" * 5000 + b"}", b"", "not valid JSON"),
    "a name twice": (b'{"a": {}, "a": {}}', b"", "'a' stands twice"),
    "a key twice": (
        b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"1",
        "'dtype' stands twice",
    ),
    "half a surrogate": (b'{"\\ud800": {}}', b"", "not valid Unicode"),
    "half a surrogate in the metadata": (
        b'{"__metadata__": {"a": "\\ud800"}}',
        b"",
        "not valid Unicode",
    ),
    "half a surrogate where nobody looks": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"\\udfff":0}}',
        b"1",
        "not valid Unicode",
    ),
    "NaN where nobody looks": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":NaN}}',
        b"1",
        "NaN is no number in JSON",
    ),
    "a number above a double's where nobody looks": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":[1e999]}}',
        b"1",
        "a number out of range",
    ),
    "a whole number above a double's where nobody looks": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1' + b"0" * 400 + b"}}",
        b"1",
        "a number out of range",
    ),
    "minus nought": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[-0,1]}}',
        b"1",
        "data_offsets must be",
    ),
    "minus nought elements": (
        b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}',
        b"",
        "shape must be a list of sizes",
    ),
    "a nesting that can be parsed": (
        b'{"a":' + b"[" * 150 + b"]" * 150 + b"}",
        b"",
        "nested more than 100 levels deep",
    ),
    "an entry that is no object": ({"a": 3}, b"", "'a': its entry must be"),
    "no dtype": (
        {"a": {"shape": [], "data_offsets": [0, 0]}},
        b"",
        "'a': its entry has no 'dtype'",
    ),
    "no shape": ({"a": {"dtype": "U8", "data_offsets": [0, 0]}}, b"", "no 'shape'"),
    "no offsets": ({"a": {"dtype": "U8", "shape": []}}, b"", "no 'data_offsets'"),
    "unknown dtype": ({"a": entry(dtype="BF17")}, b"1234", "'a': unknown dtype 'BF17'"),
    "a dtype below a byte": ({"a": entry(dtype="F4")}, b"1234", "unknown dtype 'F4'"),
    "a dtype that is no string": ({"a": entry(dtype=[])}, b"1234", "unknown dtype"),
    "negative shape": ({"a": entry(shape=[-2])}, b"1234", "'a': shape must be a list of sizes"),
    "two negatives": ({"a": entry(shape=[-2, -1])}, b"1234", "shape must be a list of sizes"),
    "boolean shape": ({"a": entry(0, 2, [True])}, b"12", "shape must be a list of sizes"),
    "fractional shape": ({"a": entry(shape=[2.0])}, b"1234", "shape must be a list of sizes"),
    "shape that is no list": ({"a": entry(shape=2)}, b"1234", "shape must be a list of sizes"),
    "absurd shape": ({"a": entry(shape=[2**62, 2**62])}, b"1234", "'a': shape .* absurdly large"),
    "shape above int64": ({"a": entry(shape=[2**64])}, b"1234", "shape must be a list of sizes"),
    "negative offset": ({"a": entry(-4, 0)}, b"1234", "'a': data_offsets must be"),
    "boolean offset": ({"a": entry(False, 4)}, b"1234", "data_offsets must be"),
    "reversed offsets": ({"a": entry(4, 0)}, b"1234", "data_offsets must be"),
    "three offsets": (
        {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}},
        b"1",
        "data_offsets must be",
    ),
    "absurd offset": ({"a": entry(0, 2**70)}, b"1234", "data_offsets must be"),
    "offsets beyond any file": (
        {"a": entry(2**62, 2**62 + 4)},
        b"1234",
        "bytes between the header",
    ),
    "shape x dtype too small": (
        {"a": entry(shape=[1])},
        b"1234",
        r"'a': shape \[1\] of BF16 is 2 by",
    ),
    "shape x dtype too large": ({"a": entry(dtype="F64")}, b"1234", "is 16 bytes, .* span 4"),
    "overlap": ({"a": entry(), "b": entry(2, 6)}, b"123456", "tensor 'b' overlaps tensor 'a'"),
    "the same bytes twice": ({"a": entry(), "b": entry()}, b"1234", "overlaps"),
    "a hole": ({"a": entry(), "b": entry(6, 10)}, b"1" * 10, "2 bytes between tensor 'a' and"),
    "a hole at the start": ({"a": entry(2, 6)}, b"1" * 6, "2 bytes between the header and"),
    "truncated data": ({"a": entry()}, b"123", "truncated"),
    "data after the end": ({"a": entry()}, b"12345", "1 bytes after tensor 'a'"),
    "metadata that is a list": ({"__metadata__": []}, b"", "__metadata__ must map"),
    "metadata with a number": ({"__metadata__": {"n": 1}}, b"", "__metadata__ must map"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_header(case: str, tmp_path: Path) -> None:
    header, data, message = BAD[case]
    file = raw_file(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(file)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated: 0 bytes cannot hold"),
        (b"\x02\0\0\0\0\0\0", "truncated: 7 bytes"),
        (b"\x03\0\0\0\0\0\0\0{}", "header claims 3 bytes, the file has 10"),
        (b"\xff" * 8 + b"{}", "header claims 18446744073709551615 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html></html>", "not a safetensors file"),
    ],
)
def test_bad_file(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(file)
    assert str(caught.value).startswith(str(file))


def test_header_above_the_formats_limit(tmp_path: Path) -> None:
    file = tmp_path / "m"
    with open(file, "wb") as stream:  # sparse: nothing of it is read
        stream.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        stream.truncate(MAX_HEADER_BYTES + 100)
    with pytest.raises(CheckpointError, match="the format allows 100000000"):
        read_header(file)


def test_every_dtype_of_the_library(tmp_path: Path) -> None:
    for dtype, size in DTYPE_BYTES.items():
        file = safetensors_file(tmp_path / dtype, {"x": (dtype, (3,), b"\0" * 3 * size)})
        assert read_header(file).tensors["x"].nbytes == 3 * size
        [(_, theirs)] = safetensors.deserialize(file.read_bytes())
        assert (theirs["dtype"], len(theirs["data"])) == (dtype, 3 * size)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
tensors = st.tuples(st.sampled_from(sorted(DTYPE_BYTES)), st.lists(st.integers(0, 4), max_size=4))


@FILE_PER_CLASS
@given(
    contents=st.dictionaries(names.filter(lambda name: name != "__metadata__"), tensors),
    metadata=st.dictionaries(names, names),
)
def test_round_trip_through_the_library(
    contents: dict[str, tuple[str, list[int]]], metadata: dict[str, str], tmp_path: Path
) -> None:
    head = write_header([(n, d, tuple(s)) for n, (d, s) in contents.items()], metadata)
    sizes = {n: math.prod(s) * DTYPE_BYTES[d] for n, (d, s) in contents.items()}
    data = bytes(i % 251 for i in range(sum(sizes.values())))
    file = tmp_path / "m.safetensors"
    file.write_bytes(head + data)

    assert len(head) % ALIGNMENT == 0
    header = read_header(file)
    assert header.metadata == metadata
    assert {n: (i.dtype, list(i.shape)) for n, i in header.tensors.items()} == contents
    whole = file.read_bytes()
    theirs = dict(safetensors.deserialize(whole))
    assert theirs.keys() == header.tensors.keys()
    for name, info in header.tensors.items():
        assert (theirs[name]["dtype"], theirs[name]["shape"]) == (info.dtype, list(info.shape))
        assert bytes(theirs[name]["data"]) == whole[info.offset : info.offset + info.nbytes]
    with safetensors.safe_open(file, "numpy") as opened:
        assert (opened.metadata() or {}) == metadata


def test_files_of_the_library_are_read(tmp_path: Path) -> None:
    tensors = {
        "x": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "y": torch.ones(3).double(),
    }
    file = tmp_path / "m.safetensors"
    save_file(tensors, file)
    whole = file.read_bytes()
    header = read_header(file)
    assert {name: info.shape for name, info in header.tensors.items()} == {"x": (2, 3), "y": (3,)}
    for name, info in header.tensors.items():
        expected = bytes(tensors[name].view(torch.uint8).flatten().tolist())
        assert whole[info.offset : info.offset + info.nbytes] == expected


VALID = json.dumps(
    {"__metadata__": {"format": "pt"}, "a": entry(), "bb": entry(4, 20, [2, 2], "F32")}
).encode()


@FILE_PER_CLASS
@given(data=st.data())
def test_a_corrupted_file_is_refused_or_valid(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(len(VALID).to_bytes(8, "little") + VALID + b"d" * 20)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["replace", "digit", "delete", "cut"])):
            case "replace":
                content[at] = data.draw(st.integers(0, 255))
            case "digit":
                content[at] = data.draw(st.sampled_from(b'0123456789-[]{},:" '))
            case "delete" if len(content) > 1:
                del content[at]
            case "cut" if at:
                del content[at:]
    file = tmp_path / "m.safetensors"
    file.write_bytes(content)
    try:
        header = read_header(file)
    except CheckpointError as error:
        assert str(file) in str(error)
        return
    theirs = {name: view["shape"] for name, view in safetensors.deserialize(bytes(content))}
    assert theirs == {name: list(info.shape) for name, info in header.tensors.items()}


def test_write_header_refuses_a_name_twice() -> None:
    with pytest.raises(ValueError, match="'a' cannot be written twice"):
        write_header([("a", "U8", (1,)), ("a", "U8", (1,))], {})
    with pytest.raises(ValueError, match="__metadata__"):
        write_header([("__metadata__", "U8", (1,))], {})
