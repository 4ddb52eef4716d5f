"""Checks a merged model: its bytes against the recorded checksums, and tensors by merging them again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from ..backends.arrays import Buffer
from ..checkpoint import checksums
from ..checkpoint.checksums import Checksums, FileRecord, MergedRecord, ShardRecord
from ..checkpoint.files import reading
from ..checkpoint.header import Header, TensorInfo, read_header
from ..checkpoint.layout import ADAPTER, MERGE_CONFIG, find_weights
from ..checkpoint.signals import held_signals
from ..checkpoint.source import Source
from ..errors import CheckpointError, counted, printable, worded_os_errors
from ..plan.models import AllowLinks
from ..system import resolve_threads
from .recompute import recompute as merge_again
from .result import Progress, start
from .threads import submit, wait

# Bytes that are read at a time.
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
    allow_links: AllowLinks = (),
    progress: Progress | None = None,
) -> VerifyResult:
    """Check the merged model in `directory` against the checksums recorded beside it.

    Args:
        directory: a model that `merge_checkpoints` made.
        recompute: number of tensors to merge again with the reference backend and to compare bit by bit. Their
            sources are the models that the config beside the weights names. None: all tensors.
        seed: chooses the tensors to recompute.
        threads: number of threads. None: one for each core that this process may use.
        allow_links: directories outside of the models to which links in them may lead.
        progress: receives the number of bytes done.

    Returns:
        VerifyResult: the model is correct if its `problems` are empty.

    Raises:
        MergeError: the model cannot be checked: it has no checksums, or its sources cannot be opened.
    """
    started = time.perf_counter()
    path = Path(directory)
    recorded = checksums.read_checksums(path)
    wrong_files = _check_files(path, recorded.files)
    headers, wrong_shards = _check_shards(path, recorded)
    problems = [*wrong_files.values(), *wrong_shards]
    again: list[str] = []
    with _open(path, headers) as model:
        held = model.tensors
        if not wrong_shards and held.keys() != recorded.tensors.keys():
            other = min(held.keys() ^ recorded.tensors.keys())
            problems.append(
                f"{path / checksums.FILE}: lists other tensors than the shards hold, for example {other!r}"
            )
        infos = [info for name, info in held.items() if name in recorded.tensors]
        total = sum(info.nbytes for info in infos)
        advance = start(progress, f"verifying {counted(len(infos), 'tensor')}", total)
        try:
            problems += _check_tensors(model, infos, recorded.tensors, threads, advance)
        finally:
            if progress:
                progress.close()
        # Merging again takes the config beside the weights, and compares with all shards.
        whole = MERGE_CONFIG in recorded.files.keys() - wrong_files.keys() and not wrong_shards
        if whole and recompute != 0:
            wrong, again = merge_again(
                path, model, recorded.options, recompute, seed, threads, allow_links, progress
            )
            problems += wrong
    return VerifyResult(
        directory=str(directory),
        files=len(recorded.files) + len(recorded.shards),
        tensors=len(infos),
        recomputed=tuple(again),
        problems=tuple(problems),
        seconds=time.perf_counter() - started,
    )


def _check_files(path: Path, recorded: Mapping[str, FileRecord]) -> dict[str, str]:
    """Return the problems of the small files, by the files' names."""
    problems = {}
    for name, record in recorded.items():
        problem = _compare(path / name, record.size, None, record.checksum)
        if problem is not None:
            problems[name] = problem
    return problems


def _check_shards(path: Path, recorded: Checksums) -> tuple[list[Header], list[str]]:
    """Return the headers of the shards whose headers are as they were written, and the problems of the others."""
    headers, problems = [], []
    for name, record in recorded.shards.items():
        header = _check_shard(path / name, record)
        if isinstance(header, Header):
            headers.append(header)
        else:
            problems.append(header)
    weights = None
    with suppress(CheckpointError):  # an index that was edited, which is a problem already
        weights = find_weights(path)
    used = set(weights.files if weights else ()) - recorded.shards.keys()
    if os.path.lexists(path / ADAPTER) and ADAPTER not in recorded.files:
        used.add(ADAPTER)  # loaders add its weights to the model's
    for name in sorted(used):
        problems.append(
            f"{printable(str(path / name))}: is used as weights, but was not written by the merge"
        )
    return headers, problems


def _check_shard(file: Path, record: ShardRecord) -> Header | str:
    """Return the shard's header, or its problem."""
    problem = _compare(file, record.size, 0, None)
    if problem is not None:
        return problem
    try:
        header = read_header(file)
    except CheckpointError:
        header = None
    if header and _compare(file, record.size, header.size, record.header) is None:
        return header
    return f"{printable(str(file))}: its header differs from what was written; its tensors were not checked"


def _compare(file: Path, size: int, nbytes: int | None, checksum: str | None) -> str | None:
    """Return how a file differs from its `size` and the `checksum` of its first `nbytes` bytes (None: all)."""
    where = printable(str(file))
    if not os.path.lexists(file):
        return f"{where}: is missing"
    digest, left = xxhash.xxh3_128(), size if nbytes is None else nbytes
    try:
        with reading(file) as stream:
            found = os.fstat(stream.fileno()).st_size
            if found != size:
                return f"{where}: has {found} bytes, was written with {size}"
            while left and (piece := stream.read(min(left, _PIECE))):
                digest.update(piece)
                left -= len(piece)
    except CheckpointError as error:
        return str(error)
    if left or checksum not in (None, digest.hexdigest()):
        return f"{where}: differs from what was written"
    return None


def _open(path: Path, headers: Sequence[Header]) -> Source:
    """Return the shards with these headers as one model, whatever its index says."""
    tensors = {name: info for header in headers for name, info in header.tensors.items()}
    identities = {header.file: header.identity for header in headers}
    return Source(str(path), path, tensors, {}, identities)


def _check_tensors(
    model: Source,
    infos: Sequence[TensorInfo],
    recorded: Mapping[str, MergedRecord],
    threads: int | None,
    advance: Callable[[int], None],
) -> list[str]:
    """Return the problems of the tensors' bytes."""
    buffers, stop = threading.local(), threading.Event()

    def check(info: TensorInfo) -> str | None:
        if not hasattr(buffers, "piece"):
            buffers.piece = Buffer(_PIECE)
        digest, cached = xxhash.xxh3_128(), model.is_cached(info)
        for begin in range(0, info.nbytes, _PIECE):
            if stop.is_set():
                return None
            view = buffers.piece.view[: min(_PIECE, info.nbytes - begin)]
            model.read_into(info, begin, view)
            digest.update(view)
            advance(view.nbytes)
        if cached is False:
            model.forget(info)
        if digest.hexdigest() == recorded[info.name].checksum:
            return None
        return f"{info.file}: tensor {info.name!r} differs from what was written"

    def problem(info: TensorInfo) -> str | None:
        try:
            return check(info)
        except CheckpointError as error:
            return str(error)

    with held_signals(), ThreadPoolExecutor(resolve_threads(threads)) as pool:
        try:
            ended = wait(futures := submit(pool, [partial(problem, info) for info in infos]))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    if ended:
        ended[-1].result()  # raises what ended the wait early
    return [found for future in futures if (found := future.result())]
