"""The files that go along with merged weights: everything in a model's folder but weights.

Left out are weights of every format and the folders that have some of their own, what trainers leave behind, dotfiles,
links to folders, and Python files that no `auto_map` names (custom_code.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

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
_TRAINING_FILES = (ADAPTER, "trainer_state.json", "events.out.tfevents.*")
#: Folders beside the weights that hold the same model once more, or the history of its training.
OTHER_FOLDERS = (
    *("checkpoint-*", "global_step*", "runs", "wandb", "logs", "onnx", "openvino", "original"),
    *("gguf", "coreml", "__pycache__"),
)
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


def find_companions(folder: Path) -> Companions:
    """Return the companions in `folder`, sorted by name. Raises CheckpointError if it cannot be read."""
    found = Companions(folder)
    pending, looked_into = [""], 0
    try:
        while pending and not found.is_full and looked_into < _MOST_FILES:
            pending += _look_into(pending.pop(), found)
            looked_into += 1
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from error
    found.names.sort()
    return found


def _look_into(place: str, found: Companions) -> list[str]:
    """Add the companions in one folder, `place`, to `found`; return the folders there. Raises OSError."""
    with os.scandir(found.folder / place) as entries:
        held = sorted(entries, key=lambda entry: entry.name)
    if place and any(e.name.endswith(_WEIGHTS) and e.is_file() for e in held):
        found.left_out[place] = "has weights of its own"
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


def _is_folder(entry: os.DirEntry[str], name: str) -> bool:
    """A folder under the name of a file is no folder to look into: reading it is an error."""
    return entry.is_dir() and not _FILES.fullmatch(name)


def _reason(name: str, entry: os.DirEntry[str]) -> str | None:
    """Return why a file or folder is left out; None if it goes along."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if any(fnmatchcase(entry.name, pattern) for pattern in _TRAINING_FILES):
        return "is not part of a model"
    if _is_folder(entry, name):
        if entry.is_symlink():
            return "is a link to a folder"
        if any(fnmatchcase(entry.name, pattern) for pattern in OTHER_FOLDERS):
            return "is not part of this model"
        return "is nested too deep" if name.count("/") >= _MOST_LEVELS else None
    if entry.name.endswith(_WEIGHTS):
        return "weights or a trainer's state"
    is_expected = is_tokenizers(name) or _FILES.fullmatch(name)
    return None if entry.is_file() or is_expected else "is not a file"
