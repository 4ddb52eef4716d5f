"""Pickles that are no state dict: each is refused, in a bounded time and memory, with one message."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuseo1_kernels.checkpoint import torch_bin, torch_pickle
from fuseo1_kernels.checkpoint.torch_pickle import read_tensors
from fuseo1_kernels.errors import CheckpointError
from support.processes import spawn

GIB = 1 << 30


def saved(data: Any) -> bytes:
    """The pickle that torch.save makes of `data`."""
    stream = io.BytesIO()
    torch.save(data, stream)
    with zipfile.ZipFile(stream) as archive:
        return archive.read("archive/data.pkl")


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(word: str) -> bytes:
    return b"X" + len(word).to_bytes(4, "little") + word.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


STORAGE = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu")
REBUILD = name("torch._utils", "_rebuild_tensor_v2")
#: A tensor of one element.
TENSOR = REBUILD + b"(" + STORAGE + b"K\x01tQK\x00(K\x01t(K\x01t\x89Ntr"[:-1] + b"R"


def model(value: bytes, key: bytes = text("w")) -> bytes:
    """The pickle of a dict with one entry."""
    return b"\x80\x02}" + key + value + b"s."


def shared(levels: int) -> bytes:
    """A tuple of two references to a tuple of two references to ...: 2^levels elements."""
    return b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(levels))


def rebuilt(
    storage: bytes = STORAGE + b"K\x01tQ",
    offset: bytes = b"K\x00",
    shape: bytes = b"(K\x01t",
    stride: bytes = b"(K\x01t",
    rest: bytes = b"\x89N",
) -> bytes:
    return REBUILD + b"(" + storage + offset + shape + stride + rest + b"tR"


KINDS: dict[str, tuple[bytes, str]] = {
    # Python would hash, compare or show something that is larger than the pickle.
    "a nested key": (model(b"N", shared(100)), "a key is a tuple"),
    "a nested value": (model(shared(100)), "'w' is a tuple"),
    "a nested result": (b"\x80\x02" + shared(100) + b".", "not tuple"),
    "a list in itself": (model(b"]q\x00h\x00a"), "'w' is a list"),
    "a dict in itself": (b"\x80\x02}q\x00" + text("w") + b"h\x00s.", "'w' is a dict"),
    "nested attributes": (model(b"}" + shared(100) + b"b"), "'w' is a dict"),
    "a long key": (model(b"N", text("w" * 100_000)), "is a NoneType"),
    "a nested storage": (model(rebuilt(shared(100) + b"Q")), "damaged"),
    "a nested shape": (model(rebuilt(shape=shared(100))), "damaged"),
    "a nested offset": (model(rebuilt(offset=shared(100))), "damaged"),
    "a nested function": (model(shared(100) + b")R"), "damaged"),
    # What would allocate, or run.
    "bytearray": (model(name("builtins", "bytearray") + number(1 << 40) + b"\x85R"), "bytearray"),
    "old bytearray": (
        model(name("__builtin__", "bytearray") + number(1 << 40) + b"\x85R"),
        "'w' is a bytearray",
    ),
    "a function": (model(name("os", "system") + text("true") + b"\x85R"), "could run code"),
    "a class": (model(name("collections", "OrderedDict") + b")\x81"), "operation NEWOBJ"),
    "a function of torch's": (model(name("torch", "load") + b")R"), "could run code"),
    "a storage is called": (model(name("torch", "FloatStorage") + number(1 << 40) + b"\x85R"), ""),
    "many arguments": (model(REBUILD + b"(" + b"N" * 1000 + b"tR"), "1000 arguments"),
    "many dimensions": (
        model(rebuilt(shape=b"(" + b"K\x01" * 1000 + b"t", stride=b"(" + b"K\x01" * 1000 + b"t")),
        "damaged",
    ),
    "many operations": (model(b"N0" * (1 << 20)), "operation POP"),
    "very many operations": (b"\x80\x02" + b"N" * (1 << 22) + b".", "operations"),
    "a long text is missing": (b"\x80\x02X\xff\xff\xff\xff.", "damaged"),
    # What stands in for a tensor, or changes it.
    "attributes of a tensor": (model(TENSOR + b"}" + text("dtype") + b"Nsb"), "attributes of"),
    "a subclass": (
        model(
            name("torch._tensor", "_rebuild_from_type_v2")
            + b"("
            + name("torch._utils", "_rebuild_parameter")
            + name("torch", "device")
            + b")NtR"
        ),
        "a tensor of a class",
    ),
    "no storage": (model(rebuilt(storage=b"N")), "a tensor of a NoneType"),
    "a storage of another kind": (model(rebuilt(b"(" + text("module") + b"NNNNtQ")), "a storage"),
    "a storage of a device": (
        model(rebuilt(STORAGE.replace(b"FloatStorage", b"device") + b"K\x01tQ")),
        "a storage of a kind",
    ),
    "less than nothing": (model(rebuilt(STORAGE + number(-1) + b"tQ")), "damaged"),
    "a truth for a number": (model(rebuilt(shape=b"(\x88t")), "damaged"),
    "a part of a number": (model(rebuilt(offset=b"G" + bytes(8))), "damaged"),
    "a negative stride": (model(rebuilt(stride=b"(" + number(-1) + b"t")), "damaged"),
    "2^63 elements": (model(rebuilt(shape=b"(" + number(1 << 63) + b"t")), "damaged"),
    "fewer strides": (model(rebuilt(stride=b")")), "damaged"),
    # What the machine cannot do.
    "nothing": (b"", "damaged"),
    "no end": (b"\x80\x02}", "damaged"),
    "nothing on the stack": (b"\x80\x02.", "damaged"),
    "no mark": (b"\x80\x02t.", "damaged"),
    "no memo": (b"\x80\x02h\x05.", "damaged"),
    "half a pair": (b"\x80\x02}(Nu.", "damaged"),
    "another protocol": (pickle.dumps({"w": 1}, 4), "damaged"),
    "text": (b"version https://git-lfs.github.com/spec/v1", "damaged"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_refused(kind: str) -> None:
    data, word = KINDS[kind]
    with pytest.raises(CheckpointError) as caught:
        read_tensors(data, "FILE")
    assert str(caught.value).startswith("FILE: ") and len(str(caught.value)) < 400
    assert word in str(caught.value)


def test_the_tensor_that_these_are_changed_from() -> None:
    for value in (TENSOR, rebuilt()):
        [(key, tensor)] = read_tensors(model(value), "FILE").items()
        assert (key, tensor.shape, tensor.storage) == (
            "w",
            (1,),
            torch_pickle.Stored("0", "float32", 1),
        )


def test_what_modules_and_programs_save() -> None:
    """Versions of modules, attributes of tensors and parameters, views that are marked as such."""
    linear = torch.nn.Linear(3, 2)
    noted, parameter = torch.ones(2), torch.nn.Parameter(torch.ones(2))
    noted.note, parameter.note = {"a": (1, 2.5, b"x")}, "n"  # type: ignore[attr-defined]
    state = linear.state_dict()
    assert state._metadata  # type: ignore[attr-defined]
    state.update(noted=noted, parameter=parameter, buffer=torch.nn.Buffer(torch.ones(1)))
    found = read_tensors(saved(state), "FILE")
    assert {key: tensor.shape for key, tensor in found.items()} == {
        key: tuple(tensor.shape) for key, tensor in state.items()
    }
    assert all(tensor.plain for tensor in found.values())
    negative = torch.ones(1, dtype=torch.complex64).conj().imag
    assert not read_tensors(saved({"w": negative}), "FILE")["w"].plain


REAL = saved(OrderedDict(a=torch.ones(2, 3), b=torch.nn.Parameter(torch.ones(4))))
OPERATIONS = sorted(
    {bytes([byte]) for byte in b"N\x88\x89K\x02)]}(t\x85\x86\x87q\x01h\x01aesuRQb."}
)


@given(st.lists(st.sampled_from([*OPERATIONS, STORAGE, REBUILD, TENSOR, text("w")]), max_size=40))
def test_any_program(parts: list[bytes]) -> None:
    try:
        read_tensors(b"\x80\x02" + b"".join(parts) + b".", "FILE")
    except CheckpointError as error:
        assert str(error).startswith("FILE: ")


def test_any_byte_changed() -> None:
    rng = random.Random(13)
    for place in range(len(REAL)):
        for _ in range(4):
            changed = bytearray(REAL)
            changed[place] = rng.randrange(256)
            try:
                read_tensors(bytes(changed), "FILE")
            except CheckpointError as error:
                assert str(error).startswith("FILE: ")


# --- memory ------------------------------------------------------------------------------


def archive(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path / "pytorch_model.bin", "w") as file:
        file.writestr("archive/data.pkl", pickled)


def sparse(path: Path, size: int, end: bytes) -> None:
    with (path / "pytorch_model.bin").open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(end)


def directory(size: int) -> Callable[[Path], None]:
    """An archive whose directory has `size` bytes, as its end says."""
    end = b"PK\x05\x06" + bytes(8) + size.to_bytes(4, "little") + bytes(6)
    return lambda path: sparse(path, size, end)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (directory(3 * GIB), "directory has more than"),
        pytest.param(
            lambda path: archive(path, b"\x80\x02" + b"]" * (1 << 24) + b"."),
            "operations",
            marks=pytest.mark.slow,
        ),
        (lambda path: archive(path, model(bytes(torch_bin.MAX_PICKLE_BYTES))), "absurdly large"),
        (lambda path: sparse(path, 3 * GIB, b""), "not an archive"),
    ],
    ids=["directory", "pickle", "large pickle", "hole"],
)
def test_memory(make: Callable[[Path], None], word: str, tmp_path: Path) -> None:
    make(tmp_path)
    limit = GIB
    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
        "from fuseo1_kernels.checkpoint.loader import open_source\n"
        "from fuseo1_kernels.errors import CheckpointError\n"
        "try:\n"
        "    open_source(sys.argv[1])\n"
        "except CheckpointError as error:\n"
        "    print(error)\n"
        "assert 'torch' not in sys.modules\n"
    )
    ran = spawn("-c", code, tmp_path)
    assert ran.code == 0 and word in ran.out, ran
