"""One merged tensor: its inputs, dtype, shape and rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from ..backends.arrays import BY_CODE, DType
from ..checkpoint.header import TensorInfo
from ..checkpoint.source import Source
from ..methods.rule import ByColumn, ByRow, Rule


@dataclass(frozen=True)
class Input:
    """A tensor of one model."""

    source: Source
    info: TensorInfo

    @property
    def dtype(self) -> DType:
        return BY_CODE[self.info.dtype]

    def part(self, start: int, numel: int) -> Input:
        """`numel` elements from flat index `start` on, as a tensor."""
        size = self.dtype.size
        place = self.info.offset + start * size
        return replace(
            self, info=replace(self.info, shape=(numel,), offset=place, nbytes=numel * size)
        )


@dataclass(frozen=True)
class Job:
    """One merged tensor: its inputs, the base (or what a method without one has in its place) first, and its rule."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    inputs: tuple[Input, ...]
    rule: Rule

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def parts(self) -> Iterator[tuple[int, Job]]:
        """What is merged by itself, and the flat index at which it begins: every row, or all of it. Not for columns."""
        assert not isinstance(self.rule, ByColumn)
        if not isinstance(self.rule, ByRow):
            yield 0, self
            return
        for start in range(0, self.numel, max(self.rule.row, 1)):
            inputs = tuple(x.part(start, self.rule.row) for x in self.inputs)
            yield start, replace(self, shape=(self.rule.row,), inputs=inputs, rule=self.rule.rule)

    @property
    def input_bytes(self) -> int:
        """Bytes of all inputs, as far as they are merged."""
        return self.numel * self.element_bytes

    @property
    def output_bytes(self) -> int:
        """Bytes of the merged tensor."""
        return self.numel * self.dtype.size

    @property
    def element_bytes(self) -> int:
        """Bytes of one element of every input."""
        return sum(x.dtype.size for x in self.inputs)
