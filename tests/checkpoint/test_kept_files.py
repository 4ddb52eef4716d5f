"""A merge uses the files that it wrote and reads back as what they are, or refuses them in one message.

A record may bear a right checksum and still be none: a checksum is no signature.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fuseo1_kernels.checkpoint import checksums
from fuseo1_kernels.checkpoint.checksums import read_checksums
from fuseo1_kernels.checkpoint.records import encode_record
from fuseo1_kernels.checkpoint.shards import OutputTensor, plan_shards
from fuseo1_kernels.checkpoint.sink import Sink
from fuseo1_kernels.errors import CheckpointError, OutputError
from support.checkpoint_files import tree
from support.kept_files import IDENTITY, NO_OBJECTS, TENSOR, checksum_file, resealed, sealed

SHARDS = plan_shards([OutputTensor("w", "BF16", (8,)), OutputTensor("v", "F32", (2,))], 16)


def with_identity(**changes: Any) -> bytes:
    return encode_record({"identity": IDENTITY.model_dump() | changes})


def with_tensor(*record: Any) -> bytes:
    return encode_record({"tensors": {"w": record}})


#: Lines that no merge writes.
LINES: dict[str, bytes] = {
    **{name: sealed(text) for name, text in NO_OBJECTS.items()},
    "a key of its own": encode_record({"more": 1}),
    "an identity that is none": encode_record({"identity": []}),
    "an identity without files": encode_record({"identity": {"version": "1"}}),
    "an identity with more": with_identity(more=1),
    "a version that is a number": with_identity(version=1),
    "a plan that is no checksum": with_identity(plan="0" * 31),
    "files that are a list": with_identity(files=[]),
    "a file of three numbers": with_identity(files={"a": [1, 2, 3]}),
    "a file of five numbers": with_identity(files={"a": [1, 2, 3, 4, 5]}),
    "a file of other things": with_identity(files={"a": ["1", 2, 3, 4]}),
    "a negative size": with_identity(files={"a": [-1, 2, 3, 4]}),
    "a size that is a fraction": with_identity(files={"a": [1.5, 2, 3, 4, 5]}),
    "a size that nothing has": with_identity(files={"a": [2**64, 2, 3, 4, 5]}),
    "tensors that are a list": encode_record({"tensors": []}),
    "a tensor that is a number": encode_record({"tensors": {"w": 7}}),
    "a tensor of two values": with_tensor("0" * 32, []),
    "a tensor of four values": with_tensor("0" * 32, [], 1, 1),
    "a checksum too short": with_tensor("0" * 31, [], 1),
    "a checksum that is no hex": with_tensor("g" * 32, [], 1),
    "a checksum in capitals": with_tensor("A" * 32, [], 1),
    "a checksum that is a number": with_tensor(0, [], 1),
    "an energy that is text": with_tensor("0" * 32, ["1"], 1),
    "an energy that is negative": with_tensor("0" * 32, [-1.0], 1),
    "an energy that is none": with_tensor("0" * 32, [float("nan")], 1),
    "an energy without end": with_tensor("0" * 32, [float("inf")], 1),
    "passes that are negative": with_tensor("0" * 32, [], -1),
    "passes that are a boolean": with_tensor("0" * 32, [], True),
    "passes beyond any": with_tensor("0" * 32, [], 2**40),
    "an inode that is text": encode_record({"publishing": "1"}),
    "an inode that is negative": encode_record({"publishing": -1}),
}


def sink(out: Path, resume: bool = True) -> Sink:
    return Sink(out, SHARDS, IDENTITY, overwrite=False, inputs=[], resume=resume)


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """OUT of a merge that was killed after one of its two tensors."""
    out = tmp_path / "merged"
    with sink(out) as begun:
        begun.write("w", 0, memoryview(bytes(16)))
        begun.complete({"w": TENSOR})
    return out


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_no_merge_writes(name: str, unfinished: Path) -> None:
    """It is refused, and nothing is lost by that; --no-resume starts afresh."""
    journal = unfinished.with_name("merged.partial") / "journal"
    journal.write_bytes(journal.read_bytes() + LINES[name])
    before = tree(unfinished.parent)
    for _ in range(2):
        with pytest.raises(OutputError, match="--no-resume") as caught:
            sink(unfinished)
        assert f"{journal}: line " in str(caught.value)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
        assert tree(unfinished.parent) == before
    with sink(unfinished, resume=False) as afresh:
        assert afresh.recorded == {}


def test_a_journal_that_is_whole(unfinished: Path) -> None:
    with sink(unfinished) as continued:
        assert continued.recorded == {"w": TENSOR}
        assert continued.holds("w", memoryview(bytearray(4)))


# --- the checksums beside a model --------------------------------------------------------

CONTENT = checksum_file()

#: What a change of the checksum file says that it holds.
BAD_CHECKSUMS: dict[str, tuple[str, Any]] = {
    "no algorithm": ("algorithm", ...),
    "another algorithm": ("algorithm", "md5"),
    "a maker that is a number": ("made_by", 1),
    "a merge that is no checksum": ("merge", "x"),
    "something more": ("more", {}),
    "options that are a list": ("options", []),
    "no options": ("options", {}),
    "another option": ("options", CONTENT["options"] | {"more": 1}),
    "a seed that is text": ("options", CONTENT["options"] | {"random_seed": "1"}),
    "a seed that is true": ("options", CONTENT["options"] | {"random_seed": True}),
    "no such way with NaN": ("options", CONTENT["options"] | {"nonfinite": "ignore"}),
    "files that are a list": ("files", []),
    "a file that is a number": ("files", {"a": 1}),
    "a file without a size": ("files", {"a": {"checksum": "0" * 32}}),
    "a file with more": ("files", {"a": {"checksum": "0" * 32, "size": 1, "more": 1}}),
    "a size that is text": ("files", {"a": {"checksum": "0" * 32, "size": "1"}}),
    "a negative size": ("files", {"a": {"checksum": "0" * 32, "size": -1}}),
    "a checksum too long": ("files", {"a": {"checksum": "0" * 33, "size": 1}}),
    "a file above the model": ("files", {"../a": {"checksum": "0" * 32, "size": 1}}),
    "a file at the root": ("files", {"/etc/passwd": {"checksum": "0" * 32, "size": 1}}),
    "a file without a name": ("files", {"": {"checksum": "0" * 32, "size": 1}}),
    "a name with NUL": ("files", {"a\0b": {"checksum": "0" * 32, "size": 1}}),
    "a shard that leads away": ("shards", {"a/../../b": {"header": "0" * 32, "size": 1}}),
    "a shard without a header": ("shards", {"a": {"size": 1}}),
    "a tensor that is a list": ("tensors", {"w": ["0" * 32, []]}),
    "an energy that is a list": ("tensors", {"w": {"checksum": "0" * 32, "energy": [[]]}}),
    "an energy that is negative": ("tensors", {"w": {"checksum": "0" * 32, "energy": [-1]}}),
}


def refused(directory: Path, content: bytes) -> None:
    file = directory / checksums.FILE
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="merge again") as caught:
        read_checksums(directory)
    assert str(caught.value).startswith(f"{file}: ")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", BAD_CHECKSUMS)
def test_checksums_of_another_form(name: str, tmp_path: Path) -> None:
    """They bear the right checksum of their own."""
    key, value = BAD_CHECKSUMS[name]
    content = {k: v for k, v in (CONTENT | {key: value}).items() if v is not ...}
    refused(tmp_path, checksums.seal(content))


@pytest.mark.parametrize("name", NO_OBJECTS)
def test_checksums_that_are_none(name: str, tmp_path: Path) -> None:
    refused(tmp_path, NO_OBJECTS[name])


def test_every_byte_of_the_checksums_counts(tmp_path: Path) -> None:
    whole = checksums.seal(CONTENT)
    (tmp_path / checksums.FILE).write_bytes(whole)
    assert read_checksums(tmp_path).tensors["w"].checksum == "1" * 32
    for place, byte in enumerate(whole):
        other = bytes([byte ^ 1 << place % 8])
        (tmp_path / checksums.FILE).write_bytes(whole[:place] + other + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=checksums.FILE):
            read_checksums(tmp_path)


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    text = json.dumps({"checksum": "0" * 32, **CONTENT}).encode()
    refused(tmp_path, resealed(text[:-1] + b', "made_by": "me"}'))
