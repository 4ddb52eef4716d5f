"""One merged tensor: its inputs, dtype, shape and rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from ..backends.arrays import BY_CODE, DType
from ..checkpoint.header import DTYPE_BYTES, INTEGERS, TensorInfo
from ..checkpoint.source import Source
from ..methods.rule import ByColumn, ByRow, Rule

#: Types of tensors that are copied: no backend has a number for them.
STORED = BY_CODE | {code: DType(code, code, -1, DTYPE_BYTES[code]) for code in INTEGERS}


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor of one model."""

    source: Source
    info: TensorInfo

    @property
    def dtype(self) -> DType:
        return STORED[self.info.dtype]

    def part(self, start: int, numel: int) -> Input:
        """Return `numel` elements from flat index `start` on, as a one-dimensional input."""
        size = self.dtype.size
        offset = self.info.offset + start * size
        return replace(
            self, info=replace(self.info, shape=(numel,), offset=offset, nbytes=numel * size)
        )


@dataclass(frozen=True, slots=True)
class Job:
    """One merged tensor.

    Attributes:
        name: the output tensor's name.
        shape: the output's shape. The inputs may have more rows (cropped embeddings).
        dtype: the output's dtype.
        inputs: base first; a method without a base has its first model there.
        rule: the method's rule for this tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    inputs: tuple[Input, ...]
    rule: Rule

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def parts(self) -> Iterator[tuple[int, Job]]:
        """Yield (flat start index, job) for each part that is merged independently: every row, or the whole tensor.

        Not for rules by column.
        """
        assert not isinstance(self.rule, ByColumn)
        if not isinstance(self.rule, ByRow):
            yield 0, self
            return
        for start in range(0, self.numel, max(self.rule.row, 1)):
            inputs = tuple(x.part(start, self.rule.row) for x in self.inputs)
            yield start, replace(self, shape=(self.rule.row,), inputs=inputs, rule=self.rule.rule)

    @property
    def input_bytes(self) -> int:
        """Bytes of all inputs, without cropped rows."""
        return self.numel * self.element_bytes

    @property
    def output_bytes(self) -> int:
        """Bytes of the merged tensor."""
        return self.numel * self.dtype.size

    @property
    def element_bytes(self) -> int:
        """Bytes of one element of every input."""
        return sum(x.dtype.size for x in self.inputs)
