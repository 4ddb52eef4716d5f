"""Merges tensors of a merged model again, by the reference backend, and compares them bit by bit."""

from __future__ import annotations

import random
import threading
from contextlib import ExitStack
from pathlib import Path

from ..backends.arrays import Buffer
from ..backends.registry import load_backend
from ..checkpoint.checksums import Options
from ..checkpoint.layout import MERGE_CONFIG
from ..checkpoint.source import Source
from ..config.load import as_config
from ..errors import counted
from ..plan.alignment import align
from ..plan.job import Job
from ..plan.models import AllowLinks, open_lender, open_sources
from ..plan.plan import make_plan, refuse_problems
from ..system import resolve_threads
from .cpu.memory import divide_memory, memory_floor
from .cpu.worker import CpuWorker
from .headers_memory import headers_memory
from .options import DEFAULT_MAX_MEMORY, DEFAULT_SHARD_SIZE, MergeOptions
from .read_ahead import absent_inputs, forget
from .result import Progress, start
from .worker import MergeContext


class _Comparison:
    """A Destination that compares merged bytes with the model and notes the tensors that differ."""

    def __init__(self, model: Source) -> None:
        self._model = model
        self.differing: set[str] = set()

    def write(self, name: str, start: int, view: memoryview) -> None:
        stored = Buffer(view.nbytes)
        self._model.read_into(self._model.tensors[name], start, stored.view)
        if stored.view != view:
            self.differing.add(name)


def recompute(
    path: Path,
    model: Source,
    options: Options,
    count: int | None,
    seed: int,
    threads: int | None,
    allow_links: AllowLinks,
    progress: Progress | None,
) -> tuple[list[str], list[str]]:
    """Merge tensors of a merged model again, from its sources, and compare them with it.

    Args:
        path: the model's directory, whose config is as the merge wrote it.
        model: the same model, opened.
        options: the options that its merge was made with.
        count: how many tensors to merge, drawn at random; None: all.
        seed: seed of that draw.
        threads: number of threads; None: all cores.
        allow_links: directories outside of the sources to which links in them may lead.
        progress: is told how far it is; None: nothing is.

    Returns:
        The problems, one for each tensor that differs, and the names of the tensors that were merged again. If tensors
        have another shape or dtype than their sources give, these are the problems, and nothing is merged.

    Raises:
        MergeError: the sources cannot be opened or read, or do not fit together.
    """
    with ExitStack() as stack:
        config = as_config(path / MERGE_CONFIG)
        sources = open_sources(
            config, stack, progress=False, download=False, allow_links=allow_links
        )
        lender = None
        if config.aligned_to is not None:
            lender = open_lender(config, sources, stack, False, allow_links)
        plan = make_plan(
            config,
            sources,
            shard_size=DEFAULT_SHARD_SIZE,
            crop_embeddings=options.crop_embeddings,
            random_seed=options.random_seed,
            alignment=align(config, sources, lender, DEFAULT_MAX_MEMORY),
        )
        refuse_problems(plan)
        jobs = list(plan.jobs)
        if count is not None and count < len(jobs):
            jobs = random.Random(seed).sample(jobs, count)
        problems = [p for job in jobs if (p := _mismatch(job, model)) is not None]
        if problems:
            return problems, []
        comparison = _Comparison(model)
        # The original merge may have had more memory than the default, and may need it.
        max_memory = max(DEFAULT_MAX_MEMORY, memory_floor(plan.jobs) + headers_memory(plan))
        _, memory = divide_memory(plan, MergeOptions(threads=1, max_memory=max_memory))
        total = sum(job.input_bytes + job.output_bytes for job in jobs)
        advance = start(progress, f"merging {counted(len(jobs), 'tensor')} again", total)
        worker = CpuWorker(
            load_backend("reference"),
            memory,
            MergeContext(comparison, options.nonfinite, advance, threading.Event()),
            threads=lambda: resolve_threads(threads),
        )
        try:
            for job in jobs:
                absent = absent_inputs(job)
                worker.merge(job)
                forget(absent)
        finally:
            if progress:
                progress.close()
    names = [job.name for job in jobs]
    return [
        f"{model.tensors[name].file}: tensor {name!r} is not what its sources give"
        for name in names
        if name in comparison.differing
    ], names


def _mismatch(job: Job, model: Source) -> str | None:
    """Return a problem if the model's tensor has not the shape and dtype of `job`."""
    info = model.tensors.get(job.name)
    if info is not None and (info.dtype, info.shape) == (job.dtype.code, job.shape):
        return None
    return f"{model.path}: tensor {job.name!r} has another shape or dtype than its sources give"
