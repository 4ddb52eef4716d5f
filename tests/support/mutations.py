"""Strategies that damage valid input: bytes, text, and the trees that JSON and YAML stand for."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import strategies as st

from fuseo1_kernels.checkpoint.header import DTYPE_BYTES
from support.checkpoint_files import Tensors

Text = TypeVar("Text", str, bytes)


@dataclass(frozen=True)
class Raw:
    """A piece of a document, written as it stands where a value or a key would be."""

    text: str


def document(tree: Any) -> str:
    """Return `tree` as JSON, and so as YAML; json.dumps would refuse much of what is tried here."""
    if isinstance(tree, Raw):
        return tree.text
    if isinstance(tree, dict):
        pairs = (f"{document(key)}: {document(value)}" for key, value in tree.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(document, tree)) + "]"
    return json.dumps(tree, default=repr)


# --- what damages ------------------------------------------------------------------------


@st.composite
def spliced(draw: st.DrawFn, valid: Text, pieces: st.SearchStrategy[Text]) -> Text:
    """`valid` with up to four stretches of it replaced: flipped, inserted, deleted, cut off."""
    content = valid
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(content)))
        width = draw(st.sampled_from([0, 0, 1, 1, 1, 2, 8, 40, len(content)]))
        content = content[:begin] + draw(pieces) + content[begin + width :]
    return content


@st.composite
def edited(
    draw: st.DrawFn, tree: Any, values: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]
) -> Any:
    """A copy of `tree` with one to three changes of values, keys and shape."""
    root = [copy.deepcopy(tree)]
    for _ in range(draw(st.integers(1, 3))):
        places = _places(root)
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        value = holder[key]
        change = draw(
            st.sampled_from(["value", "near", "copy", "delete", "add", "rename", "twice"])
        )
        if change == "near" and type(value) is int:
            near = [value + step for step in (-8, -2, -1, 1, 2, 8, 2**32, 2**63)]
            holder[key] = draw(st.sampled_from([*near, Raw(f"-{value}"), Raw(f"{value}.0")]))
        elif change == "copy":
            other, place = places[draw(st.integers(0, len(places) - 1))]
            holder[key] = copy.deepcopy(other[place])
        elif change == "delete" and holder is not root:
            del holder[key]
        elif isinstance(holder, dict) and change in ("add", "rename", "twice"):
            if change == "rename":
                del holder[key]
            twin = Raw(document(key)) if change == "twice" else draw(keys)
            holder[twin] = copy.deepcopy(draw(values) if change == "add" else value)
        elif change == "add" and holder is not root:
            holder.insert(key, copy.deepcopy(draw(values)))
        else:
            holder[key] = copy.deepcopy(draw(values))
    return root[0]


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """Return every (container, key) below `root`."""
    found: list[tuple[Any, Any]] = []
    containers: list[Any] = [root]
    while containers:
        holder = containers.pop()
        for key, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
            found.append((holder, key))
            if isinstance(value, (dict, list)):
                containers.append(value)
    return found


# --- what is damaged ---------------------------------------------------------------------

HELD: Tensors = {
    "model.embed_tokens.weight": ("BF16", (4, 2), bytes(16)),
    "model.layers.0.w": ("F32", (2,), bytes(8)),
    "model.layers.1.w": ("F32", (2,), bytes(8)),
    "empty": ("F16", (0, 7), b""),
    "scalar": ("F32", (), bytes(4)),
}

WHOLE = """
models:
  - model: &left left  # by an alias below
  - {model: right, parameters: }
merge_method: sce
base_model: base
parameters:
  select_topk:
    - filter: layers
      value: [0.1, 0.5]
    - value: 1.0
  variant: mergekit
  int8_mask: true
dtype: bfloat16
tokenizer_files: {model: *left, overrides: {add_bos_token: false, more: {a: [1, "é"]}}}
chat_template: |
  {{ messages }}
"""
SLICES = """
slices:
  - sources: [{model: base, layer_range: [0, 2]}, {model: left, layer_range: [0, 2]}]
    parameters: {select_topk: 0.25}
  - sources:
      - {model: right, layer_range: [0, 1]}
      - {model: left, layer_range: [1, 2]}
    base_model: right
merge_method: sce
base_model: base
out_dtype: float32
tokenizer_source: base
chat_template: auto
"""
TIES = """
models:
  - {model: base}
  - {model: left, parameters: {weight: [0.5, 1.0], density: [{filter: layers, value: 0.2}, {value: 1}]}}
  - {model: right, parameters: {weight: -0.3}}
merge_method: breadcrumbs_ties
base_model: base
parameters: {density: 0.5, gamma: 1e-2, lambda: 0.7, normalize: true, rescale: true, int8_mask: false}
"""
LINEAR = """
models: [{model: left}, {model: right}]
merge_method: linear
parameters: {weight: 0.5, normalize: true}
"""
STACKED = """
slices:
  - sources: [{model: left, layer_range: [0, 2], parameters: {scale: 0.5}}]
  - sources: [{model: right, layer_range: [1, 2]}]
    parameters: {scale: [{filter: mlp, value: 0}]}
merge_method: passthrough
"""
INDEX = "model.safetensors.index.json"
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "num_hidden_layers": 2,
    "layer_types": ["a", "b"],
    "mlp_only_layers": [1],
    "decoder_sparse_step": 1,
    "first_k_dense_replace": 1,
    "attention_types": [[["a", "b"], 1]],
    "text_config": {"num_hidden_layers": 2, "model_type": "gemma2"},
}
FIRST, SECOND = "1.safetensors", "sub/2.safetensors"
WEIGHT_MAP = {name: FIRST if place < 2 else SECOND for place, name in enumerate(HELD)}
#: An index may try to lead to these.
SHARDS = (
    *(FIRST, f"./{FIRST}", f"sub/../{FIRST}", f"{FIRST}/", "sub", ".", "..", "/", "~", "*", ""),
    *(f"../left/{FIRST}", f"../outside/{FIRST}", f"directory/{FIRST}", "link.bin", "loop", "gone"),
    *("config.json", "/etc/passwd", "/dev/zero", "/proc/self/mem", "x" * 300, "x/" * 3000),
    *("\0", "a\0b", "\udcff", "\ud800", "\n"),
)

# --- with what ---------------------------------------------------------------------------

SIZES = (-1, 0, 1, 2, 3, 4, 7, 8, 12, 2**31, 2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64, 10**400)
WORDS = ("", "*", "a", "weight", "\0", "\n", "\x1b[2J", "\u202e", "é", "\U0001f600", "x" * 3000)
#: Numbers of layers that are none, or none that a program can count to.
LAYERS = ("0", "1", "7", "00", "-1", "1.5", "٣", "²", "9" * 30, "9" * 400, "9" * 5000)

_LAYER_NAMES = st.sampled_from(LAYERS).map("model.layers.{}.w".format)
_TEXT = st.one_of(st.sampled_from(WORDS), _LAYER_NAMES, st.text(max_size=4))
_SCALARS = st.one_of(
    st.sampled_from(SIZES),
    st.none(),
    st.booleans(),
    st.sampled_from([0.0, -0.0, 0.5, 1e300, float("nan"), float("-inf")]),
    _TEXT,
)
_PLAIN = st.one_of(
    _SCALARS,
    st.lists(_SCALARS, max_size=3),
    st.dictionaries(st.sampled_from(WORDS), _SCALARS, max_size=2),
)


def _cut(text: str) -> list[str]:
    return text.split("|")


def nested(most: int) -> st.SearchStrategy[Raw]:
    """Lists or mappings in each other, up to `most`."""
    brackets = st.sampled_from([("[", "]"), ('{"a": ', "}")])
    return st.tuples(brackets, st.integers(1, most)).map(
        lambda drawn: Raw(drawn[0][0] * drawn[1] + "1" + drawn[0][1] * drawn[1])
    )


_RAW_JSON = (
    *_cut("|NaN|-Infinity|-0|-0.0|0.0|4.0|4e0|1e999|01|-|nul|[|]|{|}|[1,]|'a'"),
    *_cut(r'"\ud800"|"\udfff\ud800"|"\ud83d\ude00"|"\u0000"|"\x"|{"a":1,"a":2}'),
    *('"\t"', "9" * 5000, '{"\\ud800": 1}', '{"x": NaN}'),
)
JSON_VALUES = st.one_of(_PLAIN, st.sampled_from(_RAW_JSON).map(Raw), nested(1500))
JSON_KEYS = st.one_of(
    _LAYER_NAMES, _TEXT, st.sampled_from([Raw('"\\ud800"'), "__metadata__", "a\x1b", "b\n"])
)
JSON_PIECES = st.one_of(
    st.binary(max_size=3),
    st.sampled_from([*' 01-.",:\\', *_RAW_JSON]).map(str.encode),
    st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\xed\xa0\x80", b"\xef\xbb\xbf", b"version "]),
)


def damaged_json(tree: Any, values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """`tree` as JSON, damaged in its bytes or, with `values` among others, in itself."""
    in_bytes = spliced(document(tree).encode(), JSON_PIECES)
    in_tree = edited(tree, st.one_of(JSON_VALUES, values), JSON_KEYS)
    return st.one_of(in_bytes, in_tree.map(lambda changed: document(changed).encode()))


@st.composite
def damaged_safetensors(draw: st.DrawFn, tensors: Tensors) -> bytes:
    """A file of `tensors`, damaged in its bytes, or around and in its header."""
    tree: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    size = 0
    for name, (dtype, shape, content) in tensors.items():
        offsets = [size, size := size + len(content)]
        tree[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
    if draw(st.booleans()):
        text = document(tree).encode()
        return draw(spliced(len(text).to_bytes(8, "little") + text + bytes(size), JSON_PIECES))
    dtypes = st.sampled_from([*DTYPE_BYTES, "F4", "F6_E2M3", "BF17", "f32"])
    values = st.one_of(JSON_VALUES, dtypes, st.lists(st.sampled_from(SIZES), max_size=4))
    text = document(draw(edited(tree, values, JSON_KEYS))).encode()
    length = draw(st.sampled_from([*[len(text)] * 8, 0, len(text) + 1, 10**8, 2**63, 2**64 - 1]))
    size += draw(st.sampled_from([0, 0, 0, 0, -1, 1, 8, -size]))
    return length.to_bytes(8, "little") + text + bytes(size)


def _bomb(first: str, level: str) -> str:
    """A YAML list of which each entry refers nine times to the one before it."""
    entries = [f"&b0 {first}"]
    for number in range(1, 12):
        entries.append(f"&b{number} " + level % ", ".join([f"*b{number - 1}"] * 9))
    return "[" + ", ".join(entries) + "]"


_TAGS = ("int", "float", "bool", "null", "timestamp", "binary", "str", "seq", "map", "set", "omap")
_RAW_YAML = (
    *(f"!!{tag} {value}" for tag in _TAGS for value in ("''", "x", "[a]", "{a: 1}", "[a: 1]")),
    *_cut("!!pairs [a: 1]|!!merge x|!!value x|!!binary aGk=|!!binary gA==|!x y|!"),
    *_cut("!!python/object/apply:os.getcwd []|!!python/name:os.getcwd ''"),
    *_cut("&a [*a]|&a {x: *a}|&a {value: [*a]}|&a {*a : 1}|&a {<<: *a}|*a|&a|&a 1"),
    *_cut("{<<: {a: 1}}|{<<: [{a: 1}, 2]}|{<<: 1}|{[a]: 1}|{? {a: 1} : 2}|{1: 2}"),
    *_cut("2001-01-01|2001-01-01 0:00:00 +99:99|0001-01-01T00:00:00+23:59|2001-99-99"),
    *_cut(".nan|-.inf|1.0e+999|0o7|010|_|0x_|0b|._|+|~|=|on|? a|- a|%YAML 9.9|---|..."),
    *_cut(r'"\UFFFFFFFF"|"\U00110000"|"\ud800"|"{\ud800"|"\0"|"\N\L\P"|"|@|`|#'),
    *("0x" + "f" * 5000, "0b" + "1" * 20_000, "9" * 5000, "9" * 400),
    *("1" + ":1" * 900, "1" + ":1" * 200 + ".5", "'", "|\n  {a\n", ">-\n", "\t", "\x85"),
    _bomb("[x, x, x, x]", "[%s]"),
    _bomb("{x: 1, y: 2}", "{<<: [%s]}"),
)
YAML_VALUES = st.one_of(_PLAIN, st.sampled_from(_RAW_YAML).map(Raw), nested(400))
YAML_PIECES = st.one_of(
    st.text(max_size=3),
    st.sampled_from(["", " ", "\n", "  ", ": ", "- ", ", ", "[", "{", "}", *_RAW_YAML]),
    st.sampled_from(["models", "slices", "base", "left", "layer_range", "value", "filter"]),
)


def yaml_keys(known: Sequence[str]) -> st.SearchStrategy[Any]:
    """The config's own keys, in places where they may not belong, and keys that are no text."""
    return st.one_of(st.sampled_from(known), _SCALARS, st.sampled_from(_RAW_YAML).map(Raw))


#: A program, not a YAML file, may hand over these as a config.
OBJECTS = st.one_of(
    _PLAIN,
    st.sampled_from([b"left", b"\xff", (0, 2), frozenset("a"), ..., int, 1j, range(2)]),
    st.sampled_from(["\ud800", "{\udfff", -(10**400), {"x": 10**4000}, {1: {2: 3}}, [(1, 2)]]),
)


def object_keys(known: Sequence[str]) -> st.SearchStrategy[Any]:
    """Keys of such a config."""
    strange = st.sampled_from([b"models", (1, 2), "\ud800", "a\nb"])
    return st.one_of(st.sampled_from(known), _SCALARS, strange)
