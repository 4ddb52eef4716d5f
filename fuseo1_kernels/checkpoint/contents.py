"""Tells a model's own files from what else lies in its directory: only the former may be replaced.

A model's own are the files that `fuseo1_checksums.json` lists, the shards that an index names, and those whose names
models have on the hub. Names are judged, not contents; what is not known is the user's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError
from . import checksums
from .layout import FORMATS, read_weight_map

_WEIGHTS = re.compile(
    "|".join(
        rf"{Path(single).stem}(-\d{{5,6}}-of-\d{{5,6}})?\{Path(single).suffix}|{re.escape(index)}"
        for single, index in FORMATS
    )
)

#: Files beside the weights, by their paths in the directory.
_SMALL = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|chat_template|preprocessor_config|processor_config|video_preprocessor_config|normalizer"
    r"|params|tekken|modules|sentence_bert_config|config_sentence_transformers)\.json"
    r"|(merges|vocab|LICENSE|NOTICE|Notice)\.txt|chat_template\.jinja|mergekit_config\.yml"
    r"|(tokenizer|sentencepiece\.bpe|spiece|sentencepiece)\.model|(source|target)\.spm|bpe\.codes"
    r"|\w+\.tiktoken|(README|LICENSE|NOTICE|USE_POLICY)\.md|LICENSE|NOTICE|\.gitattributes"
    r"|(configuration|modeling|tokenization|processing|image_processing|feature_extraction)_\w+\.py"
    r"|additional_chat_templates/\w+\.jinja"
    r"|\d+_[A-Z]\w*/(config\.json|model\.safetensors|pytorch_model\.bin)"
    # `hf download --local-dir` leaves these.
    r"|\.cache/huggingface/(\.gitignore|CACHEDIR\.TAG|download/[^/]+\.(metadata|lock|incomplete))"
)

_FOLDERS = re.compile(r"additional_chat_templates|\d+_[A-Z]\w*|\.cache(/huggingface(/download)?)?")


class Contents(NamedTuple):
    """The content of a directory, by path: a model's own files and folders, and foreign ones (folders end in "/").

    `own` is in an order in which it can be deleted. `weights`: some of it are weights, or the record of a merge.
    """

    own: list[str]
    foreign: list[str]
    weights: bool


def contents_of(directory: Path) -> Contents:
    """Return what `directory` holds; nothing is changed. Raises OSError."""
    listed = {checksums.FILE, *_listed(directory)}
    folders = {str(folder) for name in listed for folder in Path(name).parents}
    own: list[str] = []
    foreign: list[str] = []

    def visit(folder: str) -> None:
        for entry in sorted(os.scandir(directory / folder), key=lambda entry: entry.name):
            path = f"{folder}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if path in folders or _FOLDERS.fullmatch(path):
                    visit(f"{path}/")
                    own.append(f"{path}/")
                else:
                    foreign.append(f"{path}/")
            elif (entry.is_symlink() or entry.is_file()) and (
                path in listed or _WEIGHTS.fullmatch(path) or _SMALL.fullmatch(path)
            ):
                own.append(path)
            else:
                foreign.append(path)

    visit("")
    return Contents(
        own, foreign, any(name == checksums.FILE or _WEIGHTS.fullmatch(name) for name in own)
    )


def _listed(directory: Path) -> Iterator[str]:
    """Yield the files that the directory itself says are a model's, but for hidden ones and paths that lead away.

    Of an index these are weights alone; a merge's record is believed if it is whole.
    """
    names: list[str] = []
    for single, index in FORMATS:
        with suppress(CheckpointError):  # there is none, or it is damaged
            shards = read_weight_map(directory / index).values()
            names += [name for name in shards if name.endswith(Path(single).suffix)]
    with suppress(CheckpointError):
        recorded = checksums.read_checksums(directory)
        names += [*recorded.files, *recorded.shards]
    for name in names:
        if not name.startswith("/") and not any(part.startswith(".") for part in name.split("/")):
            yield name
