"""Merges groups of tensors on a GPU: from files to its memory, and from there to the sink."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import xxhash

from ...backends.arrays import Array, Buffer
from ...backends.interface import OnDevice, Room
from ...backends.results import SceResult, SurveyResult, expect
from ...checkpoint.journal import TensorRecord
from ...methods.sce import Sce
from ...plan.inputs import Stored
from ...plan.job import Job
from ..worker import MergeContext, TensorReport
from .blocking import BlockingMerger, SurveySummary
from .context import GpuContext
from .cpu_fallback import CpuFallback
from .device import Event, explained
from .layout import Chunk, Layout, Task, TensorRequest, footprint
from .staging import Slot, Stopped

# Copies from the device that a worker has in progress: one runs while the output of the other is written.
_COPIES_OUT = 2
# A group of small tensors takes at most 1 / _GROUP_SHARE of the memory for regions.
_GROUP_SHARE = 8


class GpuWorker:
    """A worker of a GPU, which it shares with others: while one reads, the others' kernels and copies run.

    Events order the streams: kernels wait for the copies in, copies out wait for the kernels. For rules other than SCE
    the host waits for both (BlockingMerger). A slot is filled again once the copy from it has ended; a region is
    returned once all of its output is on the host.
    """

    def __init__(self, gpu: GpuContext, context: MergeContext, cpu_fallback: CpuFallback) -> None:
        self._gpu = gpu
        self._context = context
        self._cpu_fallback = cpu_fallback
        self._blocking = BlockingMerger(gpu, context)
        self._scratch = Buffer(gpu.size.slot)

    @property
    def scratch(self) -> memoryview:
        """A buffer that is free between tensors."""
        return self._scratch.view

    def merge_all(
        self, jobs: Sequence[Job], direct: Callable[[Job], Sequence[Stored]]
    ) -> dict[str, TensorReport]:
        """Merge `jobs`; see Worker.merge_all. On the GPU each tensor is read once."""
        reports = {
            job.name: self._cpu_fallback.merge(job, direct(job))
            for job in jobs
            if job.name in self._cpu_fallback
        }
        for group in self._groups([job for job in jobs if job.name not in self._cpu_fallback]):
            with explained(self._gpu.device):
                reports |= self._merge(group, [x for job in group for x in direct(job)])
        return reports

    def _groups(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        """Yield groups of jobs to merge in one region: small ones together, a large one alone."""
        backend, most = self._gpu.backend, self._gpu.size.region_bytes // _GROUP_SHARE
        group: list[Job] = []
        held = 0
        for job in jobs:
            needed = footprint(
                job, self._context.surveys_at_once, backend.result_bytes, backend.params_bytes
            )
            if group and held + needed > most:
                yield group
                group, held = [], 0
            group.append(job)
            held += needed
        if group:
            yield group

    def _merge(self, jobs: Sequence[Job], direct: Sequence[Stored]) -> dict[str, TensorReport]:
        """Merge a group; return reports by tensor name."""
        gpu, cache = self._gpu, self._context.surveys
        requests = [self._request(job) for job in jobs]
        layout = Layout(requests, gpu.backend.result_bytes, gpu.backend.params_bytes)
        region = gpu.regions.take(layout.nbytes)
        copied = self._copy_in(layout, region, direct)
        for job in jobs:
            for x in job.stored:
                x.source.check_unchanged(x.info.file)
        if all(isinstance(job.rule, Sce) for job in jobs):
            gpu.copies_out.wait(self._enqueue_kernels(layout, region, copied))
            summaries = None
        else:
            summaries = self._merge_by_rule(layout, region, copied)
        reports = {}
        for job, summary, checksum in self._copy_out(layout, region, summaries):
            if cache:
                cache.keep(job, summary.new.items())
            record = TensorRecord(checksum, summary.energy, summary.passes)
            reports[job.name] = TensorReport(record, job.input_bytes)
        # After a failure the region is not returned: copies may still be in progress.
        gpu.regions.give(region)
        return reports

    def _request(self, job: Job) -> TensorRequest:
        """Look up the job's survey in the cache and list what to survey. Raises MergeError for a refused survey."""
        rule = job.rule
        if not isinstance(rule, Sce):
            return TensorRequest(job)
        kept, missing = self._context.look_up(job, rule.select_topk)
        topks = tuple(topk for topk in missing if isinstance(topk, float))
        if kept is None:
            return TensorRequest(job, topks)
        kept = expect(SceResult, kept)
        self._check(job, kept, 0)
        return TensorRequest(job, topks, kept, self._gpu.backend.pack_params(rule.params([kept])))

    # --- to the device -------------------------------------------------------------------

    def _copy_in(self, layout: Layout, region: int, direct: Sequence[Stored]) -> list[Event]:
        """Read the group and copy it to its region; return the events of the copies."""
        gpu = self._gpu
        chunks = layout.chunks_in(gpu.size.slot)
        reads = [gpu.submit(partial(self._read, chunk, region, direct)) for chunk in chunks]
        return [read.result() for read in reads]

    def _read(self, chunk: Chunk[Stored | bytes], region: int, direct: Sequence[Stored]) -> Event:
        """Read a chunk into a staging slot and enqueue its copy; return the copy's event. Raises Stopped."""
        gpu = self._gpu
        slot = gpu.staging_in.take()
        for part in chunk.parts:
            if self._context.stop.is_set():
                raise Stopped
            view, x = slot.view[part.at : part.at + part.nbytes], part.item
            if isinstance(x, bytes):
                view[:] = x[part.start : part.start + part.nbytes]
                continue
            x.source.read_into(x.info, part.start, view)
            if x in direct:
                x.source.drop(x.info, part.start, part.nbytes)
            self._context.advance(part.nbytes)
        slot.copied = copied = gpu.copies_in.copy(
            gpu.memory, region + chunk.start, slot.memory, 0, chunk.nbytes
        )
        gpu.staging_in.give(slot)
        return copied

    # --- on the device -------------------------------------------------------------------

    def _enqueue_kernels(self, layout: Layout, region: int, copied: Sequence[Event]) -> Event:
        """Enqueue the kernels of a group, behind its copies; return the event after them."""
        gpu = self._gpu
        with gpu.enqueuing, gpu.kernels.current():
            for event in copied:
                gpu.kernels.wait(event)
            for task in layout.tasks:
                self._enqueue(task, region)
            return gpu.kernels.record()

    def _merge_by_rule(
        self, layout: Layout, region: int, copied: Sequence[Event]
    ) -> list[SurveySummary]:
        """Wait for the copies, then merge the group with blocking ops."""
        for event in copied:
            event.synchronize()
        return [
            self._blocking.merge(task.job, *self._arrays(task, region)) for task in layout.tasks
        ]

    def _arrays(self, task: Task, region: int) -> tuple[list[Array], Array]:
        """Return the inputs and the output of a task, on the device."""
        memory, job = self._gpu.memory, task.job
        start = memory.address + region
        inputs = [
            Array(start + at, x.dtype, job.numel, memory.tensor)
            for at, x in zip(task.inputs, job.inputs, strict=True)
        ]
        return inputs, Array(start + task.out, job.dtype, job.numel, memory.tensor)

    def _enqueue(self, task: Task, region: int) -> None:
        """Enqueue the surveys and the fuse of one tensor, by SCE."""
        gpu, backend = self._gpu, self._gpu.backend

        def part(at: int, nbytes: int) -> object:
            return gpu.memory.tensor[region + at : region + at + nbytes]

        inputs, out = self._arrays(task, region)
        rooms = [
            Room(
                gpu.workspace,
                part(result, backend.result_bytes),
                part(params, backend.params_bytes),
            )
            for result, params in zip(task.results, task.params, strict=True)
        ]
        assert isinstance(task.job.rule, Sce)
        surveys = [
            backend.enqueue_survey(inputs, topk, task.job.rule.variant, room)
            for topk, room in zip(task.request.topks, rooms, strict=False)
        ]
        if task.request.kept:
            kept = rooms[task.fuse]
            surveys.append(OnDevice(kept.result, kept.params, len(inputs) - 1))
        backend.enqueue_fuse(inputs, surveys[task.fuse], out)

    # --- from the device -----------------------------------------------------------------

    def _copy_out(
        self, layout: Layout, region: int, summaries: list[SurveySummary] | None
    ) -> list[tuple[Job, SurveySummary, str]]:
        """Copy the outputs to the host and write them; return job, surveys and checksum of each tensor.

        If `summaries` is None the survey results come from the device, before the outputs. Raises MergeError if they
        forbid to write an output.
        """
        results = bytearray()
        checksums = {id(task): xxhash.xxh3_128() for task in layout.tasks}
        for chunk, slot in self._chunks_from(layout, region):
            for part in chunk.parts:
                view = slot.view[part.at : part.at + part.nbytes]
                if part.item is None:
                    results += view
                    if len(results) == layout.results_bytes:
                        summaries = [self._unpack(task, layout, results) for task in layout.tasks]
                    continue
                checksums[id(part.item)].update(view)
                self._context.destination.write(part.item.job.name, part.start, view)
                self._context.advance(part.nbytes)
        assert summaries is not None
        return [
            (task.job, summary, checksums[id(task)].hexdigest())
            for task, summary in zip(layout.tasks, summaries, strict=True)
        ]

    def _chunks_from(
        self, layout: Layout, region: int
    ) -> Iterator[tuple[Chunk[Task | None], Slot]]:
        """Yield the chunks of results and outputs, each in a slot that is valid until the next chunk."""
        gpu = self._gpu
        pending = deque(layout.chunks_out(gpu.size.slot))
        copying: deque[tuple[Chunk[Task | None], Slot, Event]] = deque()
        while pending or copying:
            while pending and len(copying) < _COPIES_OUT:
                # A worker that holds a slot must not wait for a second one: all workers could deadlock.
                slot = gpu.staging_out.take_if_free() if copying else gpu.staging_out.take()
                if slot is None:
                    break
                chunk = pending.popleft()
                copied = gpu.copies_out.copy(
                    slot.memory, 0, gpu.memory, region + chunk.start, chunk.nbytes
                )
                copying.append((chunk, slot, copied))
            chunk, slot, copied = copying.popleft()
            copied.synchronize()
            yield chunk, slot
            gpu.staging_out.give(slot)

    def _unpack(self, task: Task, layout: Layout, results: bytearray) -> SurveySummary:
        """Unpack the survey results of a tensor. Raises MergeError if its output must not be written."""
        backend, targets = self._gpu.backend, len(task.job.inputs) - 1
        unpacked = []
        for at in task.results:
            start = at - layout.results_start
            raw = bytes(results[start : start + backend.result_bytes])
            unpacked.append(backend.unpack_result(raw, targets))
        survey, written = unpacked[task.fuse]
        survey = task.request.kept or survey
        self._check(task.job, survey, written)
        new = zip(task.request.topks, (result for result, _ in unpacked), strict=False)
        return SurveySummary(dict(new), survey.energy, survey.passes)

    def _check(self, job: Job, survey: SurveyResult, written: int) -> None:
        """Raise MergeError if inputs or output have non-finite elements that must not be written."""
        guard = self._context.guard(job)
        guard.check_survey(survey)
        guard.check_output(written, [survey], lambda: survey)
