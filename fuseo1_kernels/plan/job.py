"""One merged tensor: its inputs, dtype, shape and rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from ..backends.arrays import DType
from ..methods.rule import ByColumn, ByRow, Rule
from .inputs import Input, Stored


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

    @property
    def stored(self) -> tuple[Stored, ...]:
        """The tensors in files that the inputs are, or are computed from."""
        return tuple(stored for x in self.inputs for stored in x.stored)

    @property
    def computed(self) -> bool:
        """Whether any input is not a tensor as it stands in a file."""
        return not all(isinstance(x, Stored) for x in self.inputs)

    def parts(self) -> Iterator[tuple[int, Job]]:
        """Yield (flat start index, job) for each part that is merged independently: every row, or the whole tensor.

        If any input is computed, parts have all of them whole. Not for rules by column.
        """
        assert not isinstance(self.rule, ByColumn)
        if not isinstance(self.rule, ByRow):
            yield 0, self
            return
        row, stored, computed = self.rule.row, self.stored, self.computed
        for start in range(0, self.numel, max(row, 1)):
            inputs = self.inputs if computed else tuple(x.part(start, row) for x in stored)
            yield start, replace(self, shape=(row,), inputs=inputs, rule=self.rule.rule)

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
