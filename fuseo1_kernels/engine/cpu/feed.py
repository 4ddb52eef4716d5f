"""How a tensor's inputs reach the ops, chunk by chunk: the ops read files, or readers fill a buffer for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from ...backends.arrays import Array, Buffer
from ...backends.contract import AverageParams, FuseParams
from ...backends.interface import FileRange, InputUnreadable, Surveyor
from ...checkpoint.source import unreadable
from ...plan.inputs import Input, Stored
from .memory import LINE
from .tools import Reader, Tools


class Feed(Protocol):
    """The inputs of a part of a tensor: base first."""

    @property
    def most(self) -> int:
        """The most elements that the ops can have at a time."""

    def twice(self) -> Feed:
        """Return a feed that gives every input twice."""

    def sample(self, surveyor: Surveyor, most_runs: int) -> None:
        """Give a survey the elements that it samples, or as many runs of them as there is room for."""

    def update(self, surveyors: Sequence[Surveyor], start: int, count: int) -> None:
        """Give surveys the elements [start, start + count). Raises CheckpointError."""

    def fuse(self, params: FuseParams, out: Array, start: int) -> int:
        """Fuse the elements from `start` on into `out`; see Ops.fuse. Raises CheckpointError."""

    def average(self, params: AverageParams, sums: Buffer, out: Array, start: int) -> int:
        """Average the elements from `start` on; see Backend.average. Raises CheckpointError."""


class FileFeed:
    """Stored inputs. The ops read pieces that fit a core's cache, so that nothing goes through memory twice."""

    def __init__(
        self,
        inputs: Sequence[Stored],
        places: Sequence[tuple[int, int]],
        buffer: Buffer,
        tools: Tools,
    ) -> None:
        self._inputs, self._buffer, self._tools = tuple(inputs), buffer, tools
        self._places = tuple(places)
        self._files = [FileRange(*place, x.dtype) for place, x in zip(places, inputs, strict=True)]
        self.most = sys.maxsize

    def twice(self) -> FileFeed:
        return FileFeed(self._inputs * 2, self._places * 2, self._buffer, self._tools)

    def sample(self, surveyor: Surveyor, most_runs: int) -> None:
        with self._explained():
            surveyor.sample_files(self._files, most_runs, self._buffer)

    def update(self, surveyors: Sequence[Surveyor], start: int, count: int) -> None:
        for surveyor in surveyors:
            with self._explained():
                surveyor.update_files(self._files, start, count, self._buffer)

    def fuse(self, params: FuseParams, out: Array, start: int) -> int:
        with self._explained():
            return self._tools.backend.fuse_files(
                self._files, params, out, start, self._tools.threads(), self._buffer
            )

    def average(self, params: AverageParams, sums: Buffer, out: Array, start: int) -> int:
        with self._explained():
            return self._tools.backend.average_files(
                self._files, params, sums, out, start, self._tools.threads(), self._buffer
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn a backend's InputUnreadable, which only has the input's number, into an error that names the tensor."""
        try:
            yield
        except InputUnreadable as error:
            raise unreadable(self._inputs[error.input].info, error.number) from None


class ReaderFeed:
    """Inputs of which some are computed: `readers` fill the buffer with all of them, one after the other."""

    def __init__(
        self,
        inputs: Sequence[Input],
        readers: Sequence[Reader],
        buffer: Buffer,
        tools: Tools,
        *,
        first: int,
        times: int = 1,
    ) -> None:
        """`first`: the flat index, in the whole inputs, where the part begins. `times`: how often the ops get each."""
        self._inputs, self._readers = inputs, readers
        self._buffer, self._tools, self._first, self._times = buffer, tools, first, times
        self._element_bytes = sum(x.dtype.size for x in inputs)
        self.most = (buffer.nbytes - LINE * len(inputs)) // self._element_bytes

    def twice(self) -> ReaderFeed:
        return ReaderFeed(
            self._inputs,
            self._readers,
            self._buffer,
            self._tools,
            first=self._first,
            times=2 * self._times,
        )

    def sample(self, surveyor: Surveyor, most_runs: int) -> None:
        _, length = surveyor.sample_runs(1)
        starts, _ = surveyor.sample_runs(min(most_runs, max(self.most // max(length, 1), 1)))
        surveyor.sample(self._read(starts, length) if starts else [])

    def update(self, surveyors: Sequence[Surveyor], start: int, count: int) -> None:
        arrays = self._read([start], count)
        for surveyor in surveyors:
            surveyor.update(arrays, start)

    def fuse(self, params: FuseParams, out: Array, start: int) -> int:
        arrays = self._read([start], out.numel)
        return self._tools.backend.fuse(arrays, params, out, start, self._tools.threads())

    def average(self, params: AverageParams, sums: Buffer, out: Array, start: int) -> int:
        arrays = self._read([start], out.numel)
        return self._tools.backend.average(arrays, params, sums, out, self._tools.threads())

    def _read(self, starts: Sequence[int], length: int) -> list[Array]:
        """Return the inputs' runs of `length` elements at `starts`, back to back."""
        arrays, at = [], 0
        for x, reader in zip(self._inputs, self._readers, strict=True):
            array = self._buffer.array(x.dtype, len(starts) * length, at)
            for number, start in enumerate(starts):
                reader.read(self._first + start, array.part(number * length, length))
            arrays.append(array)
            at += -(-array.nbytes // LINE) * LINE
        return arrays * self._times
