"""Merges tensors column by column: reads slabs of columns, each once, and assembles the output in memory.

The elements of a column are one row apart in the file, so many columns are read at once. A slab is transposed, so that
each column is contiguous, and merged by the ops in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Literal, NamedTuple

from ...backends.arrays import Array, Buffer, DType
from ...backends.contract import Request
from ...backends.results import SurveyResult
from ...methods.rule import ByColumn, Rule, learn
from ...plan.job import Job
from ..nonfinite import JobGuard, count_nonfinite
from ..worker import MergeContext, unchanging
from .memory import LINE, MOST_COLUMNS, column_bytes
from .readers import open_reader
from .tools import Reader, Tools

# Memoryview formats by element size. They only move elements, so any format of that size will do.
_FORMATS: dict[int, Literal["H", "I"]] = {2: "H", 4: "I"}


class _Block(NamedTuple):
    """Elements in a buffer, as three views: an array for the ops, elements to copy, and bytes."""

    array: Array
    elements: memoryview
    view: memoryview

    @classmethod
    def of(cls, buffer: Buffer, dtype: DType, numel: int, offset: int = 0) -> _Block:
        view = buffer.view[offset : offset + numel * dtype.size]
        return cls(buffer.array(dtype, numel, offset), view.cast(_FORMATS[dtype.size]), view)


class ColumnMerger:
    """Merges a worker's tensors by columns, into its output buffer. Slabs are read into its input buffer."""

    def __init__(
        self,
        tools: Tools,
        context: MergeContext,
        slab: Buffer,
        out: Buffer,
        survey_bytes: int,
    ) -> None:
        self._tools = tools
        self._context = context
        self._slab, self._out = slab, out
        self._survey_bytes = survey_bytes

    def merge(self, job: Job, rule: ByColumn) -> int:
        """Merge all of `job` into the output buffer; return the most passes of any survey.

        Raises MergeError, naming the tensor and the model.
        """
        with ExitStack() as stack:
            stack.enter_context(unchanging(job))
            readers = [open_reader(x, self._tools, stack) for x in job.inputs]
            return self._merge_slabs(job, rule, readers)

    def _merge_slabs(self, job: Job, rule: ByColumn, readers: Sequence[Reader]) -> int:
        passes, guard = 0, self._context.guard(job)
        output = _Block.of(self._out, job.dtype, job.numel)
        for first, width in _slabs(rule.columns, self._width(job, rule)):
            inputs, end = self._read_slab(job, rule, readers, first, width)
            merged = _Block.of(self._slab, job.dtype, rule.rows * width, end)
            for start in range(0, rule.rows * width, rule.rows):
                self._context.check_stop()
                column = [x.part(start, rule.rows) for x in inputs]
                out = merged.array.part(start, rule.rows)
                learned = self._merge(job, rule.rule, column, out, guard)
                passes = max([passes, *(survey.passes for survey in learned)])
            for row in range(rule.rows):
                start = row * rule.columns + first
                output.elements[start : start + width] = merged.elements[row :: rule.rows]
        return passes

    def _width(self, job: Job, rule: ByColumn) -> int:
        """Return the number of columns in a slab."""
        available = self._slab.nbytes - LINE * len(job.inputs)
        return min(rule.columns, MOST_COLUMNS, available // column_bytes(job, rule))

    def _read_slab(
        self, job: Job, rule: ByColumn, readers: Sequence[Reader], first: int, width: int
    ) -> tuple[list[Array], int]:
        """Read columns [first, first + width) of every input.

        Return the inputs, column-major, and the first free byte of the buffer behind them.
        """
        numel = rule.rows * width
        end, offsets = 0, []
        for x in job.inputs:
            offsets.append(end)
            end += -(-numel * x.dtype.size // LINE) * LINE
        inputs = []
        for x, reader, offset in zip(job.inputs, readers, offsets, strict=True):
            by_row = _Block.of(self._slab, x.dtype, numel, end)
            self._read(reader, rule, first, by_row.array)
            by_column = _Block.of(self._slab, x.dtype, numel, offset)
            for column in range(width):
                start = column * rule.rows
                by_column.elements[start : start + rule.rows] = by_row.elements[column::width]
            inputs.append(by_column.array)
        self._context.advance(numel * job.element_bytes)
        return inputs, end

    def _read(self, reader: Reader, rule: ByColumn, first: int, out: Array) -> None:
        """Fill `out` with the columns from `first` on, row by row; a slab of all columns is one read."""
        row, piece = rule.columns, out.numel // rule.rows
        if piece == row:
            row = piece = out.numel
        for number in range(out.numel // piece):
            self._context.check_stop()
            reader.read(number * row + first, out.part(number * piece, piece))

    def _merge(
        self, job: Job, rule: Rule, inputs: Sequence[Array], out: Array, guard: JobGuard
    ) -> list[SurveyResult]:
        """Merge one column; return its surveys."""
        learned = learn(rule, partial(self._survey, inputs), guard.check_survey)
        written = self._tools.backend.fuse(
            inputs, rule.params(learned), out, 0, self._tools.threads()
        )
        guard.check_output(written, learned, lambda: count_nonfinite(job, inputs, self._survey))
        return learned

    def _survey(self, inputs: Sequence[Array], request: Request) -> SurveyResult:
        tools = self._tools
        return tools.backend.survey(inputs, request, tools.threads(), self._survey_bytes)


def _slabs(columns: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield (first column, number of columns) of each slab."""
    for first in range(0, columns, width):
        yield first, min(width, columns - first)
