"""Averages any number of inputs in groups, so that few files are open at a time. Each is read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from ...backends.arrays import Array, Buffer
from ...backends.contract import MAX_AVERAGED, AverageParams
from ...backends.results import SurveyResult
from ...checkpoint.open_files import most_open
from ...methods.rule import Average
from ...plan.job import Job
from ..worker import unchanging
from .feed import Feed, FileFeed, ReaderFeed
from .readers import open_reader
from .tools import Tools

# Bytes of all inputs between two checks for a stop.
_CHUNK_BYTES = 256 << 20
_LEAST_CHUNK = 1 << 14


@dataclass(frozen=True)
class _Group:
    """Some of a mean's inputs: a job of these alone, how they are weighed, and their feed if they stay open."""

    job: Job
    params: AverageParams
    feed: Feed | None


class Averager:
    """Averages one tensor, chunk by chunk.

    The sums stay in `sums` between the groups of a chunk. Files stay open for all chunks if they are of one group.
    """

    def __init__(
        self,
        job: Job,
        rule: Average,
        tools: Tools,
        buffer: Buffer,
        sums: Buffer,
        stack: ExitStack,
        advance: Callable[[int], None],
    ) -> None:
        """`buffer`: what inputs are read into. `stack` closes what stays open. Raises MergeError."""
        self._job, self._tools, self._buffer, self._sums = job, tools, buffer, sums
        self._advance = advance
        #: The most elements of a chunk.
        self.most = min(sums.nbytes // 8, max(_CHUNK_BYTES // job.element_bytes, _LEAST_CHUNK))
        self._groups = list(self._divide(job, rule, stack))

    def average(self, out: Array, start: int) -> int:
        """Write the mean of the elements from `start` on to `out`; return how many are infinite or NaN."""
        written = 0
        for group in self._groups:
            self._tools.check_stop()
            with self._opened(group) as feed:
                written = feed.average(group.params, self._sums, out, start)
            self._advance(out.numel * group.job.element_bytes)
        return written

    def count_nonfinite(self, survey: Callable[[Job, Feed], SurveyResult]) -> SurveyResult:
        """Return the count of each input's non-finite elements; `survey` counts those of a few inputs."""
        counts: list[int] = []
        for group in self._groups:
            with self._opened(group) as feed:
                # A single input is counted twice, and differences do not matter here.
                counts += survey(group.job, feed).nonfinite[: len(group.job.inputs)]
        return SurveyResult(passes=1, nonfinite=(*counts, 0))

    def _divide(self, job: Job, rule: Average, stack: ExitStack) -> Iterator[_Group]:
        at_once = min(MAX_AVERAGED, max(1, most_open() // 4))
        whole = job.computed or len(job.inputs) <= at_once
        readers = []
        if whole:
            places = stack.enter_context(unchanging(job))
        if job.computed:
            readers = [open_reader(x, self._tools, stack) for x in job.inputs]
        for inputs, params in rule.steps(at_once):
            part = replace(job, inputs=job.inputs[inputs])
            feed: Feed | None = None
            if job.computed:
                feed = ReaderFeed(part.inputs, readers[inputs], self._buffer, self._tools, first=0)
                self.most = min(self.most, feed.most)
            elif whole:
                feed = FileFeed(part.stored, places, self._buffer, self._tools)
            yield _Group(part, params, feed)

    @contextmanager
    def _opened(self, group: _Group) -> Iterator[Feed]:
        """Hold the files of `group` open. Raises CheckpointError if one changed."""
        if group.feed is not None:
            yield group.feed
            return
        with unchanging(group.job) as places:
            yield FileFeed(group.job.stored, places, self._buffer, self._tools)
