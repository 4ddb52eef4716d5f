"""Readers of a tensor's inputs: of tensors in files, and of those that are computed while they are read."""

from __future__ import annotations

from contextlib import ExitStack

from ...backends.arrays import Array
from ...checkpoint.source import read_all
from ...plan.decoded import Decoded
from ...plan.folded import Folded
from ...plan.gathered import Gathered
from ...plan.inputs import Input, Stored
from ...plan.stages import Merged
from .decode import DecodingReader
from .fold import FoldReader
from .gather import GatheredReader
from .tools import Reader, Tools


def open_reader(x: Input, tools: Tools, stack: ExitStack) -> Reader:
    """Return a reader of `x`, which `stack` closes. Whatever must be known of the whole input is computed here.

    Raises MergeError.
    """
    if isinstance(x, Stored):
        return _StoredReader(x, stack)
    if isinstance(x, Folded):
        return FoldReader(x, tools, stack)
    if isinstance(x, Merged):
        return tools.open_merged(x.job, stack)
    if isinstance(x, Gathered):
        donors = [open_reader(donor, tools, stack) for donor in x.donors]
        return GatheredReader(x, donors, tools.check_stop)
    if isinstance(x, Decoded):
        return DecodingReader(x, tools, stack)
    raise TypeError(f"{x!r} has no reader")


class _StoredReader:
    def __init__(self, x: Stored, stack: ExitStack) -> None:
        self._x = x
        self._fd, self._begin = stack.enter_context(x.source.place(x.info))

    def read(self, start: int, out: Array) -> None:
        begin = self._begin + start * out.dtype.size
        read_all(self._fd, begin, self._x.info, out.view)
