"""Finds the tensors that have one row per token: embeddings, heads, and heads' biases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..checkpoint.config_sections import TEXT_CONFIGS, section_at
from ..checkpoint.header import TensorInfo
from ..checkpoint.source import Source
from .stacks import layer_of

_EMBEDDING = re.compile(
    r"(?:.*\.)?(?:embed_tokens|tok_embeddings|word_embeddings|wte|embed_in|embed_out|shared|predictions\.decoder"
    r"|lm_head)\.weight"
)
# Rows of these are positions and kinds of text, however many there are.
_OTHER_ROWS = re.compile(r"position|token_type|type_embed|wpe|rotary|relative")


def is_embedding(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this name and shape has one row per token."""
    return len(shape) == 2 and _EMBEDDING.fullmatch(name) is not None


class TokenTensors:
    """The tensors of a model that have one row per token.

    Known by name, or outside of the layers by as many rows as the vocabulary has: an architecture may call its head,
    and its bias, what it likes. `rows`: how many each of them has; None: there are none.
    """

    def __init__(self, source: Source) -> None:
        known = {t.shape for t in source.tensors.values() if is_embedding(t.name, t.shape)}
        sizes, stated = {rows for rows, _ in known}, _stated(source.config)
        # A model for speech, say, has a second, smaller vocabulary that is not the tokenizer's.
        self.rows = max(sizes & stated or sizes or stated, default=None)
        self._widths = {width for _, width in known}
        self.names = frozenset(name for name, info in source.tensors.items() if self._has(info))

    def _has(self, info: TensorInfo) -> bool:
        if not info.shape or info.shape[0] != self.rows:
            return False
        if is_embedding(info.name, info.shape):
            return True
        if layer_of(info.name) is not None or _OTHER_ROWS.search(info.name):
            return False
        kind = len(info.shape) == 2 or (len(info.shape) == 1 and info.name.endswith("bias"))
        return kind and self.rows not in self._widths


def _stated(config: Mapping[str, Any]) -> set[int]:
    """Return the sizes of the vocabulary that config.json states."""
    sections = (section_at(config, path) for path in ((), *TEXT_CONFIGS))
    sizes = (part.get("vocab_size") for part in sections if part is not None)
    return {size for size in sizes if type(size) is int}
