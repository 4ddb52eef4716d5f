"""Torch's own files: where their tensors' bytes lie, what is refused, and files that change."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels.checkpoint.header import DTYPE_BYTES
from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.checkpoint.source import Source
from fuseo1_kernels.errors import CheckpointError
from support.checkpoint_files import TWO, single_model, write_json

BIN = "pytorch_model.bin"

#: safetensors' names.
DTYPE_NAMES = {
    **{torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16"},
    **{torch.int32: "I32", torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.float32: "F32", torch.float64: "F64", torch.complex64: "C64"},
    **{torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"},
}

Entries = dict[str, bytes]


def read(source: Source, name: str, start: int = 0, count: int | None = None) -> bytes:
    info = source.tensors[name]
    buffer = bytearray(info.nbytes - start if count is None else count)
    source.read_into(info, start, memoryview(buffer))
    return bytes(buffer)


def content(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def any_bits(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor of every kind of value: NaNs with payloads, infinities, denormals."""
    generator = torch.Generator().manual_seed(sum(shape) + dtype.itemsize)
    high = 2 if dtype is torch.bool else 256
    size = (torch.Size(shape).numel() * dtype.itemsize,)
    return torch.randint(high, size, generator=generator).to(torch.uint8).view(dtype).view(shape)


def saved(path: Path, data: Any, name: str = BIN, **options: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    torch.save(data, path / name, **options)
    return path / name


def rewritten(
    file: Path, change: Callable[[Entries], object], method: int = zipfile.ZIP_STORED
) -> Path:
    """Write `file` again by another hand, after a change of its entries (by name in the folder)."""
    with zipfile.ZipFile(file) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(f"folder/{name}", data)
    return file


def same_as_torch(path: Path, *files: Path) -> None:
    """The model holds what torch.load finds in its files, bit by bit."""
    with open_source(str(path)) as source:
        expected = {k: v for file in files for k, v in torch.load(file, weights_only=True).items()}
        assert source.tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            info = source.tensors[name]
            assert (info.dtype, info.shape) == (DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))
            assert read(source, name) == content(tensor)


def refused(file: Path, *words: str) -> None:
    """Opening the model of `file` fails with one message that names it and says all of this."""
    with pytest.raises(CheckpointError) as caught:
        open_source(str(file.parent))
    for word in (str(file), *words):
        assert word in str(caught.value)


# --- what torch.save writes --------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPE_NAMES, ids=str)
def test_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    assert DTYPE_BYTES[DTYPE_NAMES[dtype]] == dtype.itemsize
    same_as_torch(tmp_path, saved(tmp_path, {"w": any_bits(dtype, 3, 7), "v": any_bits(dtype, 5)}))


def test_shapes_and_sharing(tmp_path: Path) -> None:
    w = any_bits(torch.bfloat16, 6, 4)
    data = {
        "w": w,
        "tied": w,
        "tail": w[2:],
        "row": w[5],
        "one row of a transposed": w.T[:, :1].T,
        "0-d": torch.tensor(2.5, dtype=torch.float16),
        "0-d within": w[3, 3],
        "empty": torch.empty(0, 3),
        "empty within": w[6:],
        "parameter": torch.nn.Parameter(any_bits(torch.float32, 9)),
        "name/with é and 名": torch.ones(1),
    }
    same_as_torch(tmp_path, saved(tmp_path, data))
    with open_source(str(tmp_path)) as source:
        assert source.tensors["tied"].offset == source.tensors["w"].offset
        assert source.tensors["tail"].offset == source.tensors["w"].offset + 2 * 4 * 2


def test_shards(tmp_path: Path) -> None:
    parts = [
        {f"{i}.{dtype}": any_bits(dtype, 5, i + 1) for dtype in (torch.bfloat16, torch.float32)}
        for i in range(3)
    ]
    files = [saved(tmp_path, part, f"{i}.bin") for i, part in enumerate(parts)]
    index = tmp_path / "pytorch_model.bin.index.json"
    weight_map = {name: f"{i}.bin" for i, part in enumerate(parts) for name in part}
    write_json(index, {"weight_map": weight_map})
    same_as_torch(tmp_path, *files)
    name = next(iter(parts[0]))
    for shard, words in (
        ("2.bin", f"tensor '{name}' is in 2.bin, but it is not"),
        ("../x.bin", f"weight_map sends tensor '{name}' to '../x.bin'"),
    ):
        write_json(index, {"weight_map": weight_map | {name: shard}})
        with pytest.raises(CheckpointError, match=words):
            open_source(str(tmp_path))


def test_safetensors_go_before_torch_files(tmp_path: Path) -> None:
    saved(tmp_path, {"w": torch.ones(1)})
    with open_source(str(single_model(tmp_path))) as source:
        assert source.tensors.keys() == TWO.keys()


def test_no_checksums(tmp_path: Path) -> None:
    """Without them, zipfile would refuse to read a thing."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        file = saved(tmp_path, {"w": any_bits(torch.float32, 30)})
    finally:
        torch.serialization.set_crc32_options(before)
    same_as_torch(tmp_path, file)


def test_entries_are_found_by_name(tmp_path: Path) -> None:
    """A writer may order them as it likes, and need not say its byte order, as torch < 2.1."""
    file = saved(tmp_path, {name: any_bits(torch.float32, 30 + ord(name)) for name in "abc"})

    def change(entries: Entries) -> None:
        backwards = list(reversed(entries.items()))
        entries.clear()
        entries.update(backwards)
        del entries["byteorder"]

    same_as_torch(tmp_path, rewritten(file, change))


def test_opening_neither_reads_nor_maps_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(tmp_path, {name: torch.zeros(2**20) for name in "abc"})
    real, counts = os.pread, []

    def pread(fd: int, count: int, offset: int) -> bytes:
        counts.append(count)
        return real(fd, count, offset)

    monkeypatch.setattr(os, "pread", pread)
    with open_source(str(tmp_path)) as source:
        assert 0 < sum(counts) < 10_000
        assert read(source, "c", 0, 4) == bytes(4)
        assert str(file) not in Path("/proc/self/maps").read_text()


# --- files that change -------------------------------------------------------------------


# --- what cannot be merged ---------------------------------------------------------------


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def test_code(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    file = saved(tmp_path / "m", {"w": torch.ones(1), "evil": Evil(trace)})
    refused(file, "holds Python objects besides tensors", "not opened")
    assert not trace.exists()


STEPS = torch.arange(12.0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"state_dict": {"w": torch.ones(1)}}, "'state_dict' is a dict"),
        ([torch.ones(1)], "must hold a dict of tensors, not list"),
        ({}, "must hold a dict of tensors"),
        ({3: torch.ones(1)}, "3 is a Tensor"),
        ({"half\ud800": torch.ones(1)}, "its name is not valid Unicode"),
        ({"w": torch.eye(2).to_sparse()}, "sparse tensors are not supported"),
        ({"w": torch.ones(1, dtype=torch.complex128)}, "'w': complex128 is not supported"),
        ({"w": torch.ones(1, device="meta")}, "tensor 'w': the file has no data of it"),
        ({"w": STEPS.reshape(3, 4).T}, "tensor 'w': does not lie row-major"),
        ({"w": STEPS[::2]}, "tensor 'w': does not lie row-major"),
        ({"w": STEPS[:1].expand(3)}, "tensor 'w': does not lie row-major"),
        ({"w": torch.ones(1, dtype=torch.complex64).conj().imag}, "tensor 'w': does not lie"),
        ({"w": torch.ones(1, dtype=torch.complex64).conj()}, "tensor 'w': does not lie"),
        ({"w": torch.ones(1, dtype=torch.uint16)}, "'w': uint16 is not supported"),
        ({"w": torch.quantize_per_tensor(STEPS, 1.0, 0, torch.qint8)}, "quantized tensors"),
        ({"__metadata__": STEPS}, "can hold no tensor of this name"),
        ({(1, 2): STEPS}, "a key is a tuple"),
        ({"w": torch.Size([3])}, "'w' is a tuple"),
        ({"w": {1, 2}}, "'w' is a set"),
    ],
    ids=str,
)
def test_data_of_another_kind(data: Any, words: str, tmp_path: Path) -> None:
    refused(saved(tmp_path, data), words)


def test_a_storage_that_shrank_under_its_tensor(tmp_path: Path) -> None:
    shrunk = torch.ones(8)
    shrunk.untyped_storage().resize_(16)
    refused(saved(tmp_path, {"w": shrunk}), "tensor 'w': is the bytes [0, 32) of a storage of 16")


@pytest.mark.parametrize("byteorder", [b"big", b"middle"])
def test_another_byte_order(byteorder: bytes, tmp_path: Path) -> None:
    file = saved(tmp_path, {"w": torch.ones(1)})
    rewritten(file, lambda entries: entries.update(byteorder=byteorder))
    refused(file, "little-endian", "convert the model to safetensors")


# --- damage ------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["text", "empty", "before torch 1.6", "git-lfs"])
def test_no_archive(file_format: str, tmp_path: Path) -> None:
    options: dict[str, Any] = (
        {"_use_new_zipfile_serialization": False} if file_format[:6] == "before" else {}
    )
    file = saved(tmp_path, {"w": torch.ones(1)}, **options)
    if not options:
        texts = {"text": "text" * 99, "empty": "", "git-lfs": "version https://git-lfs.github.com/"}
        file.write_text(texts[file_format])
    refused(file, "damaged, or saved by torch < 1.6", "download it again")


def test_cut_anywhere(tmp_path: Path) -> None:
    file = saved(tmp_path, {"w": torch.ones(100), "v": torch.ones(1)})
    whole = file.read_bytes()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        refused(file)


def test_bytes_missing_in_the_middle(tmp_path: Path) -> None:
    file = saved(tmp_path, {"w": torch.ones(1000), "v": torch.ones(1)})
    whole = file.read_bytes()
    file.write_bytes(whole[:2000] + whole[3000:])
    refused(file, "damaged")


@pytest.mark.parametrize("record", ["data.pkl", "byteorder", "data/0"])
def test_an_entry_that_is_not_where_the_directory_says(record: str, tmp_path: Path) -> None:
    file = saved(tmp_path, {"w": torch.ones(8)})
    with zipfile.ZipFile(file) as archive:
        start = next(i.header_offset for i in archive.infolist() if i.filename.endswith(record))
    whole = bytearray(file.read_bytes())
    for place in (start, start + 26, start + 27, start + 31):  # signature, length of name, name
        damaged = whole.copy()
        damaged[place] ^= 0xFF
        file.write_bytes(damaged)
        refused(file, f"{record!r} is not where its directory says")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: e.pop("data/0"), ("tensor 'w'", "has no entry 'data/0'", "download it again")),
        (lambda e: e.pop("data.pkl"), ("has no entry 'data.pkl'",)),
        (lambda e: e.update({"data/0": b"short"}), ("tensor 'w'", "has 5", "download it again")),
        (lambda e: e.update({"data.pkl": e["data.pkl"][:-9]}), ("its pickle is damaged",)),
        (lambda e: e.update({"data.pkl": b""}), ("its pickle is damaged",)),
        (lambda e: e.clear(), ("has no entry 'data.pkl'",)),
    ],
)
def test_entries_missing_or_cut(
    change: Callable[[Entries], object], words: tuple[str, ...], tmp_path: Path
) -> None:
    refused(rewritten(saved(tmp_path, {"w": torch.ones(8)}), change), *words)


def test_a_view_that_reaches_past_its_storage(tmp_path: Path) -> None:
    """The second of two: 4 elements from the second of 4 on."""
    whole = torch.ones(4)
    file = saved(tmp_path, {"whole": whole, "w": whole[1:]})

    def change(entries: Entries) -> None:
        sizes = b"K\x03\x85"  # (3,)
        assert entries["data.pkl"].count(sizes) == 1
        entries["data.pkl"] = entries["data.pkl"].replace(sizes, b"K\x04\x85")

    refused(rewritten(file, change), "tensor 'w': is the bytes [4, 20) of a storage of 16")


def test_compressed_entries(tmp_path: Path) -> None:
    file = saved(tmp_path, {"w": torch.ones(8)})
    rewritten(file, lambda entries: None, zipfile.ZIP_DEFLATED)
    refused(file, "compressed", "convert the model to safetensors")


def test_a_compressed_storage_alone(tmp_path: Path) -> None:
    file = rewritten(saved(tmp_path, {"w": torch.ones(8)}), lambda e: e.pop("data/0"))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/data/0", bytes(32))
    refused(file, "tensor 'w'", "'data/0' is compressed")


@pytest.mark.parametrize("name", ["folder/data/0", "other/data/1"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_entries_twice_or_outside(name: str, tmp_path: Path) -> None:
    file = rewritten(saved(tmp_path, {"w": torch.ones(8)}), lambda e: None)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, bytes(32))
    refused(file, name, "stands twice or outside of its folder")
