"""One merge on a GPU, in several sets of tensors, and what its calls take there."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from gpu_report import Figure
from report import median

from fuseo1_kernels import merge_tensors
from fuseo1_kernels.backends.interface import GpuBackend
from fuseo1_kernels.bench.data import siblings
from fuseo1_kernels.in_memory.ops import as_array

L2 = 60 << 20  # of an H200; sets of tensors are to exceed it several times
DEVICE = "cuda"

MergeContext = Callable[[], object]


def nbytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(t.nbytes for t in tensors)


def on_device(works: Sequence[MergeContext], repeats: int) -> tuple[list[float], float]:
    """Return the seconds that each of `repeats` calls takes on the device, and a call's on the host.

    The calls take turns among `works`.
    """
    for work in works:
        work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for work in works:
        work()
    host = (time.perf_counter() - start) / len(works)
    torch.cuda.synchronize()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    # The device waits while the host enqueues, so that its gaps are no part of what is measured.
    torch.cuda._sleep(int(2e9 * min(1.0, 1.5 * host * repeats)))
    events[0].record()
    for event, work in zip(events[1:], itertools.cycle(works)):
        work()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)], host


class Case:
    """One merge, in as many sets of tensors as exceed the caches."""

    def __init__(
        self,
        shape: Sequence[int],
        targets: int = 3,
        dtypes: Sequence[torch.dtype] = (torch.bfloat16,),
        rms: float = 1e-3,
    ) -> None:
        self.targets, self.rms = targets, rms
        names = [str(d).removeprefix("torch.") for d in dtypes]
        self.dtypes = "+".join(names)
        dealt = list(itertools.islice(itertools.cycle(dtypes), targets + 1))
        self.sets: list[list[torch.Tensor]] = []
        while len(self.sets) < 2 or (len(self.sets) < 64 and self._bytes() < 4 * L2):
            # Targets of another dtype than the base's are rounded once, from fp32.
            drawn = siblings(
                tuple(shape),
                targets,
                rms=rms,
                dtype=dealt[0] if len(dtypes) == 1 else torch.float32,
                seed=len(self.sets),
                device=DEVICE,
            )
            self.sets.append([t.to(dtype) for t, dtype in zip(drawn, dealt, strict=True)])
        self.outs = [torch.empty_like(tensors[0]) for tensors in self.sets]

    def _bytes(self) -> int:
        return sum(map(nbytes, self.sets))

    def copy_rate(self, repeats: int) -> float:
        """Return the bytes per second, read and written, of a device copy of as many bytes as a set has."""
        size = nbytes(self.sets[0])
        buffers = [torch.ones(size, dtype=torch.uint8, device=DEVICE) for _ in range(4)]
        works = [partial(buffers[i].copy_, buffers[i + 1]) for i in (0, 2)]
        return 2 * size / median(on_device(works, repeats)[0])

    def calls(
        self, gpu: GpuBackend, select_topk: float, variant: str
    ) -> dict[str, tuple[int, list[MergeContext]]]:
        """Return our calls: the bytes that each must move, and one for every set."""
        read, written = nbytes(self.sets[0]), self.outs[0].nbytes
        inputs = [[as_array(t) for t in tensors] for tensors in self.sets]
        outs = [as_array(out) for out in self.outs]
        surveys = [gpu.enqueue_survey(i, select_topk, variant) for i in inputs]
        enqueue = partial(gpu.enqueue_survey, select_topk=select_topk, variant=variant)

        def merge(i: int) -> None:
            gpu.enqueue_fuse(inputs[i], enqueue(inputs[i]), outs[i])

        every = range(len(self.sets))
        return {
            "merge": (2 * read + written, [partial(merge, i) for i in every]),
            "survey": (read, [partial(enqueue, inputs[i]) for i in every]),
            "fuse": (
                read + written,
                [partial(gpu.enqueue_fuse, inputs[i], surveys[i], outs[i]) for i in every],
            ),
        }

    def figures(
        self, gpu: GpuBackend, select_topk: float, variant: str, repeats: int
    ) -> list[Figure]:
        copy = self.copy_rate(repeats)
        first = [as_array(t) for t in self.sets[0]]
        passes = gpu.result(gpu.enqueue_survey(first, select_topk, variant))[0].passes
        made = []
        for call, (moved, works) in self.calls(gpu, select_topk, variant).items():
            seconds, host = on_device(works, repeats)
            made.append(
                self.figure(
                    call, gpu.name, select_topk, variant, seconds, moved, copy, host, passes
                )
            )
        return made

    def figure(
        self,
        call: str,
        backend: str,
        select_topk: float,
        variant: str,
        seconds: list[float],
        moved: int,
        copy: float,
        host: float,
        passes: int,
    ) -> Figure:
        rate = moved / median(seconds)
        return Figure(
            call=call,
            backend=backend,
            targets=self.targets,
            dtypes=self.dtypes,
            rms=self.rms,
            select_topk=select_topk,
            variant=variant,
            ms=median(seconds) * 1e3,
            gb_per_s=rate / 1e9,
            copy_gb_per_s=copy / 1e9,
            of_copy=rate / copy,
            host_us=host * 1e6,
            passes=passes,
            samples=seconds,
        )

    def by_clock(
        self,
        call: str,
        backend: str,
        merge: Callable[..., object],
        select_topk: float,
        variant: str,
        repeats: int,
    ) -> Figure:
        """Measure a merge_tensors of whomever by the clock, the device waited for; the output is new."""
        tensors, seconds = self.sets[0], []
        for _ in range(4):
            torch.cuda.synchronize()
            start = time.perf_counter()
            kept = merge(tensors, "sce", base_index=0)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            del kept
        moved, copy = 2 * nbytes(tensors) + self.outs[0].nbytes, self.copy_rate(repeats)
        return self.figure(
            call, backend, select_topk, variant, seconds[1:], moved, copy, median(seconds[1:]), 0
        )

    def extra_memory(self, backend: str) -> float:
        """Return what merge_tensors takes beside inputs and output, as a fraction of the inputs' bytes."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        merge_tensors(
            self.sets[0],
            "sce",
            base_index=0,
            parameters={"select_topk": 0.1, "variant": "mergekit"},
            backend=backend,
            out=self.outs[0],
        )
        return (torch.cuda.max_memory_allocated() - before) / nbytes(self.sets[0])
