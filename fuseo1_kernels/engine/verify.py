"""Checks a merged model: its bytes against the recorded checksums, and tensors by merging them again."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from ..backends.arrays import Buffer
from ..backends.registry import load_backend
from ..checkpoint import checksums
from ..checkpoint.header import TensorInfo
from ..checkpoint.layout import find_weights
from ..checkpoint.loader import open_source
from ..checkpoint.source import Source
from ..config.load import as_config
from ..errors import CheckpointError, counted, worded_os_errors
from ..plan.job import Job
from ..plan.models import open_sources
from ..plan.plan import make_plan, refuse_problems
from ..plan.sidecars import MERGE_CONFIG
from ..system import resolve_threads
from .cpu.memory import divide_memory, memory_floor
from .cpu.worker import CpuWorker
from .options import DEFAULT_MAX_MEMORY, DEFAULT_SHARD_SIZE, MergeOptions
from .read_ahead import absent_inputs, forget
from .result import Progress
from .worker import MergeContext

# Bytes of a tensor read at a time.
_PIECE = 4 << 20


@dataclass(frozen=True)
class VerifyResult:
    """The result of checking a merged model.

    Attributes:
        directory: the model's directory.
        files, tensors: how many were compared with their checksums.
        recomputed: names of the tensors that were merged again by the reference backend.
        problems: files and tensors that differ from what was written, or from what their sources give; empty if the
            model is correct.
        seconds: wall time.
    """

    directory: str
    files: int
    tensors: int
    recomputed: tuple[str, ...]
    problems: tuple[str, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@worded_os_errors("the check")
def verify_model(
    directory: str | os.PathLike[str],
    *,
    recompute: int | None = 0,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> VerifyResult:
    """Check the merged model in `directory` against the checksums recorded beside it.

    Args:
        directory: a model that `merge_checkpoints` made.
        recompute: number of tensors to merge again with the reference backend and to compare bit by bit. Their
            sources are the models that the config beside the weights names. None: all tensors.
        seed: chooses the tensors to recompute.
        threads: number of threads. None: one for each core that this process may use.
        progress: receives the number of bytes done.

    Returns:
        VerifyResult: the model is correct if its `problems` are empty.

    Raises:
        MergeError: the model cannot be checked: it has no checksums, or its sources cannot be opened.
    """
    started = time.perf_counter()
    path = Path(directory)
    recorded = checksums.read_checksums(path)
    problems = list(_check_files(path, recorded))
    recomputed: list[str] = []
    checked = 0
    # The offsets of tensors can be trusted only if all sizes and headers are as recorded.
    if not problems:
        with open_source(str(path)) as model:
            names = list(recorded["tensors"])
            if missing := set(names) ^ set(model.tensors):
                raise CheckpointError(
                    f"{path / checksums.FILE}: damaged: lists other tensors than the shards hold, "
                    f"for example {min(missing)!r}"
                )
            total = sum(info.nbytes for info in model.tensors.values())
            advance = _start(progress, f"verifying {counted(len(names), 'tensor')}", total)
            try:
                problems += _check_tensors(model, recorded["tensors"], threads, advance)
                checked = len(names)
            finally:
                if progress:
                    progress.close()
            if recompute is None or recompute > 0:
                wrong, recomputed = _recompute(
                    path, model, recorded["options"], recompute, seed, threads, progress
                )
                problems += wrong
    return VerifyResult(
        directory=str(directory),
        files=len(recorded["files"]) + len(recorded["shards"]),
        tensors=checked,
        recomputed=tuple(recomputed),
        problems=tuple(problems),
        seconds=time.perf_counter() - started,
    )


def _check_files(path: Path, recorded: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of the small files and of the shards' sizes and headers."""
    for part in ("files", "shards"):
        for name, entry in recorded[part].items():
            file = path / name
            if not {"size", "checksum" if part == "files" else "header"} <= entry.keys():
                raise CheckpointError(f"{path / checksums.FILE}: damaged: its entry of {name!r}")
            if Path(name).name != name or not file.is_file():
                yield f"{file}: is missing"
            elif file.stat().st_size != entry["size"]:
                yield f"{file}: has {file.stat().st_size} bytes, was written with {entry['size']}"
            elif part == "files":
                if checksums.describe_file(_read(file, 0)) != entry:
                    yield f"{file}: differs from what was written"
            elif xxhash.xxh3_128_hexdigest(_read_header(file)) != entry["header"]:
                yield f"{file}: its header differs from what was written"
    weights = find_weights(path)
    unknown = set(weights.files if weights else ()) - recorded["shards"].keys()
    for name in sorted(unknown):
        yield f"{path / name}: is used as weights, but was not written by the merge"


def _read_header(file: Path) -> bytes:
    prefix = _read(file, 8)
    return prefix + _read(file, 8 + int.from_bytes(prefix, "little"))[8:]


def _read(file: Path, nbytes: int) -> bytes:
    """Return the first `nbytes` bytes of `file`, or all if `nbytes` is 0. Raises CheckpointError."""
    try:
        with open(file, "rb") as stream:
            return stream.read(nbytes or -1)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error


def _check_tensors(
    model: Source,
    recorded: Mapping[str, Any],
    threads: int | None,
    advance: Callable[[int], None],
) -> list[str]:
    """Return the problems of the tensors' bytes."""
    buffers = threading.local()

    def check(info: TensorInfo) -> str | None:
        if not hasattr(buffers, "piece"):
            buffers.piece = Buffer(_PIECE)
        digest, cached = xxhash.xxh3_128(), model.is_cached(info)
        for start in range(0, info.nbytes, _PIECE):
            view = buffers.piece.view[: min(_PIECE, info.nbytes - start)]
            model.read_into(info, start, view)
            digest.update(view)
            advance(view.nbytes)
        if cached is False:
            model.forget(info)
        if digest.hexdigest() == recorded[info.name].get("checksum"):
            return None
        return f"{info.file}: tensor {info.name!r} differs from what was written"

    with ThreadPoolExecutor(resolve_threads(threads)) as pool:
        return [problem for problem in pool.map(check, model.tensors.values()) if problem]


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


def _recompute(
    path: Path,
    model: Source,
    options: Mapping[str, Any],
    count: int | None,
    seed: int,
    threads: int | None,
    progress: Progress | None,
) -> tuple[list[str], list[str]]:
    """Merge `count` tensors again with the reference backend; return the problems and the tensors' names."""
    with ExitStack() as stack:
        config = as_config(path / MERGE_CONFIG)
        sources = open_sources(config, stack, progress=False, download=False)
        plan = make_plan(
            config,
            sources,
            shard_size=DEFAULT_SHARD_SIZE,
            crop_embeddings=bool(options.get("crop_embeddings")),
            random_seed=_recorded_seed(path, options),
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
        max_memory = max(DEFAULT_MAX_MEMORY, memory_floor(plan.jobs))
        _, memory = divide_memory(plan, MergeOptions(threads=1, max_memory=max_memory))
        total = sum(job.input_bytes + job.output_bytes for job in jobs)
        nonfinite = str(options.get("nonfinite", "error"))
        advance = _start(progress, f"merging {counted(len(jobs), 'tensor')} again", total)
        worker = CpuWorker(
            load_backend("reference"),
            memory,
            MergeContext(comparison, nonfinite, advance, threading.Event()),
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


def _recorded_seed(path: Path, options: Mapping[str, Any]) -> int:
    seed = options.get("random_seed", 0)
    if not isinstance(seed, int):
        raise CheckpointError(f"{path / checksums.FILE}: damaged: its random_seed is {seed!r}")
    return seed


def _mismatch(job: Job, model: Source) -> str | None:
    """Return a problem if the model's tensor has not the shape and dtype of `job`."""
    info = model.tensors.get(job.name)
    if info is not None and (info.dtype, info.shape) == (job.dtype.code, job.shape):
        return None
    return f"{model.path}: tensor {job.name!r} has another shape or dtype than its sources give"


def _start(progress: Progress | None, title: str, total_bytes: int) -> Callable[[int], None]:
    """Start `progress`, if there is one; return the function that advances it."""
    if progress is None:
        return lambda nbytes: None
    progress.start(title, total_bytes)
    return progress.advance
