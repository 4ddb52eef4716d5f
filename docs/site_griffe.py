"""Gives every parameter an entry of its own on the API pages, where a docstring describes several in one.

    dtype, out_dtype: the output's dtype.        becomes        dtype: the output's dtype.
                                                                out_dtype: the output's dtype.

griffe then finds each one's type and default, and warns of a name that the signature does not have.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SHARED = re.compile(r"^( +)((?:\w+,\s+)+\w+): (.*(?:\n\1 +.*)*)$", re.MULTILINE)


class OneEntryEach(griffe.Extension):
    """Splits the entries that several names share."""

    def on_object(self, *, obj: griffe.Object, **_kwargs: Any) -> None:
        """Rewrite the docstring of `obj`, if it has one."""
        if obj.docstring:
            obj.docstring.value = _SHARED.sub(_split, obj.docstring.value)


def _split(entry: re.Match[str]) -> str:
    indent, names, text = entry.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in re.split(r",\s+", names))
