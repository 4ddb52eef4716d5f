"""Reads the pickle of a torch file, as far as it describes tensors; nothing of the file's is called or imported.

A pickle is a program for a small machine with a stack. This machine knows the operations that torch.save writes, and
makes text, numbers, tuples, lists, dicts and descriptions of tensors. Each operation takes a bounded time and makes at
most one object, and their number is limited. Only text and numbers are hashed or shown: with references a small
pickle can describe a tuple with 2^n elements.

Sources: https://docs.python.org/3/library/pickletools.html, and what torch/_utils.py rebuilds.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from reprlib import repr as short
from typing import Any, NamedTuple

from ..errors import CheckpointError

#: The most operations of a pickle: a tensor takes about 30. They can make some 300 MB, in a few seconds.
MAX_OPERATIONS = 1 << 21

_MOST_ARGUMENTS = 8

#: The most dimensions of a tensor.
MAX_DIMENSIONS = 64

#: The dtypes of typed storages, by torch's names.
_STORAGES = {
    "torch.BFloat16Storage": "bfloat16",
    "torch.BoolStorage": "bool",
    "torch.ByteStorage": "uint8",
    "torch.CharStorage": "int8",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.ComplexFloatStorage": "complex64",
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.IntStorage": "int32",
    "torch.LongStorage": "int64",
    "torch.ShortStorage": "int16",
    "torch.storage.UntypedStorage": "uint8",
}

#: torch's other dtypes. What can be read of them is for the caller to say.
_DTYPES = {
    *(f"float8_{kind}" for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")),
    *("float4_e2m1fn_x2", "complex32", "uint16", "uint32", "uint64"),
    *_STORAGES.values(),
}

#: What may stand beside tensors, in a state dict's metadata, say; what it was is not kept.
_HARMLESS = {
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
}

#: Classes of tensors that are nothing but a tensor.
_TENSORS = {"torch.Tensor", "torch.nn.parameter.Buffer", "torch.nn.parameter.Parameter"}

_UNSUPPORTED = {
    "torch._utils._rebuild_sparse_tensor": "sparse tensors are not supported; save them as dense ones",
    "torch._utils._rebuild_qtensor": "quantized tensors are not supported; save them dequantized",
    "torch._utils._rebuild_nested_tensor": "nested tensors are not supported; save their parts",
}


class Stored(NamedTuple):
    """A storage: `numel` elements, of the dtype that torch calls `dtype`, in the archive's entry data/`key`."""

    key: str
    dtype: str
    numel: int


class Rebuilt(NamedTuple):
    """A tensor: elements of `storage` from `offset` on, in elements; None: it has no data.

    `plain`: the elements are what is stored, not their conjugates or negatives.
    """

    storage: Stored | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    plain: bool


class _Global(NamedTuple):
    """A name of a module's."""

    name: str


class _Other(NamedTuple):
    """A thing that is no tensor."""

    name: str


class _Damaged(Exception):
    """The pickle is none of torch.save's."""


def read_tensors(data: bytes, where: str) -> dict[str, Rebuilt]:
    """Return the tensors of a pickled dict by name. Raises CheckpointError; `where` names the file in it."""
    try:
        found = _Machine().run(data)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    # genops: ValueError; the machine: where an operation finds another thing than it expects.
    except (_Damaged, ValueError, TypeError, KeyError, IndexError) as error:
        raise CheckpointError(
            f"{where}: its pickle is damaged, or of a kind that is not supported; download it again"
            f" or convert the model to safetensors ({str(error)[:200]})"
        ) from None
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{where}: must hold a dict of tensors, not {_kind(found)}")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Rebuilt):
            raise CheckpointError(
                f"{where}: must map names to tensors, but {short(key)} is a {_kind(value)}"
            )
    return found


def _kind(value: object) -> str:
    if isinstance(value, (_Other, _Global)):
        return value.name
    return "Tensor" if isinstance(value, Rebuilt) else type(value).__name__


class _Machine:
    """Runs one pickle."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # stacks below the marks
        self._memo: dict[int, Any] = {}
        self._operations: dict[str, Callable[[Any], None]] = {
            "NONE": self._push,
            "NEWTRUE": lambda _: self._push(True),
            "NEWFALSE": lambda _: self._push(False),
            **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), self._push),
            **dict.fromkeys(("BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"), self._push),
            "EMPTY_TUPLE": lambda _: self._push(()),
            "EMPTY_LIST": lambda _: self._push([]),
            "EMPTY_DICT": lambda _: self._push({}),
            "EMPTY_SET": lambda _: self._push(_Other("set")),
            "TUPLE": lambda _: self._push(tuple(self._since_mark())),
            "TUPLE1": lambda _: self._push(tuple(self._pop(1))),
            "TUPLE2": lambda _: self._push(tuple(self._pop(2))),
            "TUPLE3": lambda _: self._push(tuple(self._pop(3))),
            "MARK": self._mark,
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), self._put),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda n: self._push(self._memo[n])),
            "APPEND": lambda _: self._extend(self._pop(1)),
            "APPENDS": lambda _: self._extend(self._since_mark()),
            "SETITEM": lambda _: self._set(self._pop(2)),
            "SETITEMS": lambda _: self._set(self._since_mark()),
            "GLOBAL": lambda name: self._push(_find(name)),
            "REDUCE": lambda _: self._push(_call(*self._pop(2))),
            "BINPERSID": lambda _: self._push(_storage(*self._pop(1))),
            "BUILD": self._build,
            "PROTO": lambda _: None,
        }

    def run(self, data: bytes) -> Any:
        """Return what the pickle describes."""
        for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
            if number >= MAX_OPERATIONS:
                raise CheckpointError(
                    f"its pickle has more than {MAX_OPERATIONS} operations: split the model into more files"
                )
            if operation.name == "STOP":
                break
            if operation.name not in self._operations:
                raise _Damaged(f"operation {operation.name}")
            self._operations[operation.name](argument)
        [found] = self._pop(1)
        return found

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise _Damaged("nothing on the stack")
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def _mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        values, self._stack = self._stack, self._below.pop()
        return values

    def _put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _extend(self, values: list[Any]) -> None:
        if type(self._stack[-1]) is list:
            self._stack[-1].extend(values)
        elif not isinstance(self._stack[-1], _Other):
            raise _Damaged("no list to append to")

    def _set(self, pairs: list[Any]) -> None:
        found = self._stack[-1]
        if isinstance(found, _Other):
            return
        if type(found) is not dict or len(pairs) % 2:
            raise _Damaged("no dict to fill")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, (str, int, float, type(None))):
                raise CheckpointError(f"must map names to tensors, but a key is a {_kind(key)}")
            found[key] = value

    def _build(self, _: Any) -> None:
        """Drop an object's attributes: a state dict has its modules' versions there."""
        self._pop(1)
        if not isinstance(self._stack[-1], (dict, _Other)):
            raise _Damaged(f"attributes of a {_kind(self._stack[-1])}")


def _find(name: str) -> _Global:
    """Return the global with the pickle's name, "module name". Raises CheckpointError unless it is known here."""
    found = name.replace(" ", ".", 1).replace("__builtin__.", "builtins.", 1)
    if found in _UNSUPPORTED:
        raise CheckpointError(_UNSUPPORTED[found])
    known = (_STORAGES, _HARMLESS, _TENSORS, _CALLS)
    if not any(found in names for names in known) and found.removeprefix("torch.") not in _DTYPES:
        raise CheckpointError(
            f"holds Python objects besides tensors ({short(found)}), which could run code: not opened."
            " Convert it to safetensors where you trust it"
        )
    return _Global(found)


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Global) or type(arguments) is not tuple:
        raise _Damaged("no function is called")
    if len(arguments) > _MOST_ARGUMENTS:  # to pass them on takes time, and they can be passed often
        raise _Damaged(f"{function.name} is called with {len(arguments)} arguments")
    if function.name in _CALLS:
        return _CALLS[function.name](*arguments)
    if function.name not in _HARMLESS:
        raise _Damaged(f"{function.name} is called")
    if function.name == "torch.Size" and len(arguments) == 1 and type(arguments[0]) is tuple:
        return arguments[0]
    return _Other(function.name.rpartition(".")[2])


def _storage(pid: Any) -> Stored:
    """Return the storage of the persistent id ("storage", its class, its key, where it was, its length)."""
    if type(pid) is not tuple or len(pid) != 5:
        raise _Damaged("a storage that is none")
    word, kind, key, _, numel = pid
    if word != "storage" or not isinstance(kind, _Global) or kind.name not in _STORAGES:
        raise CheckpointError(f"holds a storage of a kind that is not supported, {_kind(kind)}")
    if not isinstance(key, str) or type(numel) is not int or numel < 0:
        raise _Damaged("a storage without key or length")
    return Stored(key, _STORAGES[kind.name], numel)


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    _requires_grad: Any = None,
    _hooks: Any = None,
    metadata: Any = None,
) -> Rebuilt:
    if not isinstance(storage, Stored):
        raise _Damaged(f"a tensor of a {_kind(storage)}")
    return _rebuilt(storage, storage.dtype, offset, shape, stride, metadata)


def _tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    _requires_grad: Any,
    _hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Rebuilt:
    """As `_tensor`, of a dtype that has no typed storage."""
    if not isinstance(storage, Stored) or not isinstance(dtype, _Global):
        raise _Damaged("a tensor without storage or dtype")
    name = dtype.name.removeprefix("torch.")
    return _rebuilt(storage, name, offset, shape, stride, metadata)


def _without_data(dtype: Any, shape: Any, stride: Any, _requires_grad: Any = None) -> Rebuilt:
    if not isinstance(dtype, _Global):
        raise _Damaged("a tensor without dtype")
    return _rebuilt(None, dtype.name.removeprefix("torch."), 0, shape, stride, None)


def _rebuilt(
    storage: Stored | None, dtype: str, offset: Any, shape: Any, stride: Any, metadata: Any
) -> Rebuilt:
    for numbers in (shape, stride):
        if type(numbers) is not tuple or len(numbers) > MAX_DIMENSIONS:
            raise _Damaged("a shape that is none")
    if len(shape) != len(stride) or any(
        type(n) is not int or not 0 <= n < 1 << 63 for n in (offset, *shape, *stride)
    ):
        raise _Damaged("a shape that is none")
    return Rebuilt(storage, dtype, offset, shape, stride, plain=not metadata)


def _parameter(tensor: Any, *_: Any) -> Rebuilt:
    if not isinstance(tensor, Rebuilt):
        raise _Damaged("a parameter without tensor")
    return tensor


def _with_attributes(function: Any, kind: Any, arguments: Any, _state: Any) -> Any:
    if not isinstance(kind, _Global) or kind.name not in _TENSORS:
        raise CheckpointError(f"holds a tensor of a class that is not supported, {_kind(kind)}")
    if not isinstance(function, _Global) or function.name not in _REBUILDS:
        raise _Damaged("a tensor that is not rebuilt")
    return _call(function, arguments)


_REBUILDS: dict[str, Callable[..., Rebuilt]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_meta_tensor_no_storage": _without_data,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}

#: What may be called, and what stands in for it.
_CALLS: dict[str, Callable[..., Any]] = {
    **_REBUILDS,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "collections.OrderedDict": lambda: {},
}
