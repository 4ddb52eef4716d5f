"""The files that go along with merged weights: everything in a model's folder but weights.

Left out are weights of every format and the folders that have some of their own, but for small modules of
sentence-transformers (`2_Dense/`), what trainers leave behind, dotfiles, links to folders, and Python files that no
`auto_map` names (custom_code.py). Of a model on the hub the same files are fetched, by the list of its files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError
from . import checksums
from .files import read_bytes, reading
from .layout import ADAPTER, CONFIG, FORMATS, MERGE_CONFIG, MODEL_CARD

#: The files of a tokenizer, chat templates among them. Its Python files are those that its `auto_map` names.
_TOKENIZER = re.compile(
    r"tokenizer.*|vocab.*|merges\.txt|(special_tokens_map|added_tokens|encoder|normalizer|tekken)\.json"
    r"|dict\..*txt|bpe\.codes|[^/]*\.(tiktoken|model|spm|bpe)|chat_template.*|additional_chat_templates/.*"
)
#: Names of files alone, which loaders look for. Whatever else stands under one of them is an error: without the file,
#: the model would be another one.
_FILES = re.compile(
    r"(tokenizer|vocab|chat_template)\S*\.\S+|merges\.txt|((\w+_)?(pre)?processor_config|generation_config|modules"
    r"|special_tokens_map|added_tokens|sentence_\w+_config|config_sentence_transformers|\d+_\w+/config)\.json"
)
_WEIGHTS = (
    *{Path(single).suffix for single, _ in FORMATS},
    *(".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".ot"),
    *(".onnx", ".onnx_data", ".onnx.data", ".npz", ".npy", ".pkl", ".pickle", ".tflite", ".nemo"),
    *(".distcp", ".mlmodel"),
)
#: Files of trainers and of adapters: with ADAPTER, transformers would load an adapter instead of the merged weights.
_TRAINING_FILES = (ADAPTER, "trainer_state.json", "latest", "events.out.tfevents.*")
#: Folders beside the weights that hold the same model once more, or the history of its training.
OTHER_FOLDERS = (
    *("checkpoint-*", "global_step*", "runs", "wandb", "logs", "onnx", "openvino", "original"),
    *("gguf", "coreml", "__pycache__"),
)
#: Folders of sentence-transformers' modules, which modules.json names: the model does not load without their weights.
_MODULE = re.compile(r"\d+_[A-Z]\w*/")
#: Files of OUT that the merge makes itself.
_MADE = (CONFIG, MODEL_CARD.lower(), MERGE_CONFIG, checksums.FILE)
_INDEX = ".index.json"
#: Python, as text or compiled. What a model's `auto_map` names goes along (custom_code.py).
_CODE = (".py", ".pyi", ".pyc", ".pyo", ".pyd", ".so")

# Bytes. The largest tokenizers have 35 MB. All that goes along is in memory when it is written.
_MOST_BYTES, _MOST_BYTES_OF_ALL = 64 << 20, 256 << 20
_MOST_FILES, _MOST_LEVELS = 1000, 8


@dataclass
class Companions:
    """The companions in a model's folder.

    Attributes:
        names: with `/` between folders.
        code: the same of Python files, of which few go along.
        left_out: from name to reason.
    """

    folder: Path
    names: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        """Whether as many files were found as may go along."""
        return len(self.names) + len(self.code) >= _MOST_FILES

    def read_into(self, files: dict[str, bytes], names: Iterable[str]) -> None:
        """Add the contents of `names` to `files`; leave out those that are too large. Raises CheckpointError.

        A file of the tokenizer that is too large is an error: without it the tokenizer would be another one.
        """
        for name in names:
            limit = min(_MOST_BYTES, _MOST_BYTES_OF_ALL - sum(map(len, files.values())))
            with reading(self.folder / name) as stream:
                too_large = os.fstat(stream.fileno()).st_size > limit
            if too_large and not is_tokenizers(name):
                self.left_out[name] = f"more than {limit} bytes"
            else:
                files[name] = read_bytes(self.folder / name, limit)


class _Entry(NamedTuple):
    """An entry of a folder; of a link, what it leads to. `size` is in bytes, 0 if it is no file."""

    name: str
    is_folder: bool
    is_file: bool
    is_link: bool
    size: int

    @classmethod
    def of(cls, entry: os.DirEntry[str]) -> _Entry:
        is_file = entry.is_file()
        size = entry.stat().st_size if is_file else 0
        return cls(entry.name, entry.is_dir(), is_file, entry.is_symlink(), size)


def find_companions(folder: Path) -> Companions:
    """Return the companions in `folder`, sorted by name. Raises CheckpointError if it cannot be read."""

    def held(place: str) -> list[_Entry]:
        with os.scandir(folder / place) as entries:
            return [_Entry.of(entry) for entry in entries]

    try:
        return _find(folder, held)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from error


def companions_to_fetch(files: Mapping[str, int]) -> list[str]:
    """Return the names of a repository's companions. `files`: the sizes of all its files, by name."""
    held: dict[str, dict[str, _Entry]] = {"": {}}
    for path, size in files.items():
        *folders, name = path.split("/")
        place = ""
        for folder in folders:
            held[place].setdefault(folder, _Entry(folder, True, False, False, 0))
            place += folder + "/"
            held.setdefault(place, {})
        held[place][name] = _Entry(name, False, True, False, size)
    found = _find(Path(), lambda place: held[place].values())
    return [n for n in (*found.names, *found.code) if files[n] <= _MOST_BYTES or is_tokenizers(n)]


def _find(folder: Path, held: Callable[[str], Iterable[_Entry]]) -> Companions:
    """Return the companions in `folder`. `held` returns the entries of a folder in it, whose name ends in "/"."""
    found = Companions(folder)
    pending, looked_into = [""], 0
    while pending and not found.is_full and looked_into < _MOST_FILES:
        place = pending.pop()
        pending += _look_into(place, sorted(held(place)), found)
        looked_into += 1
    found.names.sort()
    return found


def _look_into(place: str, held: Sequence[_Entry], found: Companions) -> list[str]:
    """Add the companions in one folder, `place`, which holds `held`, to `found`; return the folders there."""
    weights = [e for e in held if e.name.endswith(_WEIGHTS) and e.is_file] if place else []
    if weights and not _MODULE.fullmatch(place):
        found.left_out[place] = "has weights of its own"
        return []
    if any(entry.size > _MOST_BYTES for entry in weights):
        found.left_out[place] = f"has weights of its own, of more than {_MOST_BYTES} bytes"
        return []
    folders = []
    for entry in held:
        name = place + entry.name
        if entry.name.startswith(".") or name.lower() in _MADE or name.endswith(_INDEX):
            continue
        if found.is_full:
            found.left_out[name] = f"there are more than {_MOST_FILES} files"
            break
        reason = _reason(name, entry)
        if reason is not None:
            found.left_out[name] = reason
        elif _is_folder(entry, name):
            folders.append(name + "/")
        else:
            (found.code if name.endswith(_CODE) else found.names).append(name)
    return folders


def is_tokenizers(name: str) -> bool:
    """Whether a companion belongs to the tokenizer."""
    return _TOKENIZER.fullmatch(name) is not None


def _is_folder(entry: _Entry, name: str) -> bool:
    """A folder under the name of a file is no folder to look into: reading it is an error."""
    return entry.is_folder and not _FILES.fullmatch(name)


def _reason(name: str, entry: _Entry) -> str | None:
    """Return why a file or folder is left out; None if it goes along."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if any(fnmatchcase(entry.name, pattern) for pattern in _TRAINING_FILES):
        return "is not part of a model"
    if _is_folder(entry, name):
        if entry.is_link:
            return "is a link to a folder"
        if any(fnmatchcase(entry.name, pattern) for pattern in OTHER_FOLDERS):
            return "is not part of this model"
        return "is nested too deep" if name.count("/") >= _MOST_LEVELS else None
    if entry.name.endswith(_WEIGHTS) and not _MODULE.fullmatch(name.removesuffix(entry.name)):
        return "weights or a trainer's state"
    is_expected = is_tokenizers(name) or _FILES.fullmatch(name)
    return None if entry.is_file or is_expected else "is not a file"
