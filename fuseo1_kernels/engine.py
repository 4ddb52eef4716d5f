"""Runs a plan: reads, surveys, fuses and writes, tensor by tensor, in bounded memory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from . import __version__
from .arithmetic import choose_arithmetic
from .checkpoint import checksums
from .checkpoint.journal import TensorRecord
from .checkpoint.partial import finish_publishing
from .checkpoint.signals import held_signals
from .checkpoint.sink import Sink
from .config import MergeConfig
from .errors import MergeError
from .feed import Feed
from .fingerprint import digest, fingerprint
from .free_memory import free_memory
from .methods import NONFINITE
from .methods.values import check_seed
from .plan import Plan, make_plan
from .prepare import (
    as_config,
    check_sizes,
    directories,
    make_sidecars,
    open_lender,
    open_sources,
    refuse_problems,
)
from .schedule import make_units
from .survey_cache import SurveyCache
from .work import Arithmetic, Work

DEFAULT_SHARD_SIZE = 5_000_000_000
DEFAULT_MAX_MEMORY = 2 << 30


class Progress(Protocol):
    """Told how far a merge is; `advance` is called from any thread."""

    def start(self, title: str, total_bytes: int) -> None: ...
    def advance(self, nbytes: int) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class MergeResult:
    """What a merge did.

    Attributes:
        out_dir: where the merged model lies.
        tensors, parameters: how many it has.
        bytes_read, bytes_written: of tensor data, by this run; what is surveyed and fused is read twice (for a GPU,
            or by columns, once), the second time, if there is memory for it, from the page cache.
        seconds: wall time, from opening the models to the rename that publishes the result.
        shards: names of the weight files.
        energy_share: by target, its part of all selected energy; empty where the method knows no energies.
        exact_path: tensors whose threshold needed more than one survey pass; of a GPU's, those of sce alone.
        resumed: tensors that an earlier run of this merge had written.
        backend: what did the arithmetic.
        notes: what is worth knowing, for example tensors that were left out.
    """

    out_dir: str
    tensors: int
    parameters: int
    bytes_read: int
    bytes_written: int
    seconds: float
    shards: tuple[str, ...]
    energy_share: dict[str, float]
    exact_path: int
    resumed: int
    backend: str
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Done:
    """Tensors that are in the output: their records by name, which of them an earlier run wrote, bytes read, notes."""

    records: dict[str, TensorRecord] = field(default_factory=dict)
    resumed: set[str] = field(default_factory=set)
    bytes_read: int = 0
    notes: list[str] = field(default_factory=list)


def merge_checkpoints(
    config: str | os.PathLike[str] | Mapping[str, Any] | MergeConfig,
    out_dir: str | os.PathLike[str],
    *,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
    max_gpu_memory: int | None = None,
    shard_size: int = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    crop_embeddings: bool = False,
    copy_tokenizer: bool = True,
    nonfinite: str = "error",
    resume: bool = True,
    survey_cache: str | os.PathLike[str] | None = None,
    survey_topk: Sequence[float] = (),
    random_seed: int = 0,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge Hugging Face checkpoints into `out_dir`, which appears whole or not at all.

    The work lies in `OUT.partial` until then. After a failure, an interruption or a kill the same call
    goes on from there and ends with the same bytes; a model that this very merge has made is left as it is.

    Args:
        config: path of a YAML file, a recipe's name, a mapping, or a MergeConfig (docs/config.md).
        out_dir: must not exist, be empty, or be given up with `overwrite`.
        backend: "auto", "cpu" or "reference"; on GPUs "auto", "cuda" or "triton".
        device: "cpu", "cuda", "cuda:1", or several GPUs, "cuda:0,cuda:1". Default: the CPU, unless the backend is
            for GPUs. Never changes a byte of the weights.
        threads: default: all cores this process may use. Never changes a byte of the result.
        max_memory: bytes for buffers and survey state together in the host's memory, at most.
        max_gpu_memory: bytes of each GPU's memory, at most; default: a quarter of what is free there. Tensors
            that do not fit are merged on the CPU.
        shard_size: most bytes of tensor data in one output file.
        overwrite: replace a model that stands at `out_dir`, once the new one is whole.
        crop_embeddings: cut embeddings of different vocabulary sizes to the smallest one's rows.
        copy_tokenizer: copy tokenizer files beside the weights.
        nonfinite: "error", or "propagate": such elements become NaN and count for nothing else.
        resume: False starts afresh, whatever an earlier run left.
        survey_cache: a directory in which surveys are kept for later merges of the same models.
        survey_topk: values of select_topk to survey for these in the same read, besides the config's (sce).
        random_seed: what the random masks of DARE and DELLA are drawn from, with the names of tensors and models.
        progress: is told how far the merge is.

    Raises:
        MergeError: one message that says what is wrong and what to do; nothing is left at `out_dir`.
    """
    started = time.perf_counter()
    parsed = as_config(config)
    check_sizes(max_memory=max_memory, shard_size=shard_size)
    arithmetic = choose_arithmetic(backend, device, max_gpu_memory)
    if nonfinite not in NONFINITE:
        raise MergeError(f"nonfinite: must be {' or '.join(NONFINITE)}, not {nonfinite!r}")
    if survey_topk and parsed.merge_method != "sce":
        raise MergeError(f"survey_topk: {parsed.merge_method} has no select_topk; leave it out")
    if survey_topk and survey_cache is None:
        raise MergeError("survey_topk asks for surveys to keep: give survey_cache, where")
    if not all(0 <= topk <= 1 for topk in survey_topk):
        raise MergeError(f"survey_topk: must lie in [0, 1]: {', '.join(map(str, survey_topk))}")
    check_seed(random_seed)
    out = Path(out_dir)
    with ExitStack() as stack:
        sources = open_sources(parsed, stack, progress=progress is not None)
        plan = make_plan(
            parsed,
            sources,
            shard_size=shard_size,
            crop_embeddings=crop_embeddings,
            random_seed=random_seed,
        )
        refuse_problems(plan)
        lender = open_lender(parsed, sources, stack)
        title = os.path.basename(os.path.realpath(out))
        sidecars = make_sidecars(parsed, plan, sources, lender, title, copy_tokenizer)
        identity = fingerprint(plan, nonfinite)
        notes = list(plan.notes)
        done = _find_finished(out, plan, digest(identity), sidecars, overwrite or not resume)
        if done is not None:
            notes.append("was there already, made by this very merge; nothing was done")
        else:
            cache = None
            if survey_cache is not None:
                cache = stack.enter_context(SurveyCache(Path(survey_cache), survey_topk))
            inputs = directories(sources, lender)
            sink = stack.enter_context(
                Sink(out, plan.shards, identity, overwrite=overwrite, inputs=inputs, resume=resume)
            )
            done = _run(plan, sink, arithmetic, threads, max_memory, nonfinite, cache, progress)
            notes += done.notes + (cache.problems if cache else [])
            sidecars[checksums.FILE] = checksums.make_checksums(
                made_by=f"fuseo1-kernels {__version__}",
                merge=digest(identity),
                options={
                    "crop_embeddings": crop_embeddings,
                    "nonfinite": nonfinite,
                    "random_seed": int(random_seed),
                },
                files=sidecars,
                shards=plan.shards,
                tensors=done.records,
            )
            for name, data in sidecars.items():
                sink.add_file(name, data)
            # Before, not after: a signal meanwhile is one that came when nothing was published.
            for source in sources.values():
                source.close()
            sink.publish()
    return MergeResult(
        out_dir=str(out_dir),
        tensors=len(plan.jobs),
        parameters=sum(job.numel for job in plan.jobs),
        bytes_read=done.bytes_read,
        bytes_written=sum(j.output_bytes for j in plan.jobs if j.name not in done.resumed),
        seconds=time.perf_counter() - started,
        shards=tuple(shard.file for shard in plan.shards),
        energy_share=_energy_share(plan, done.records),
        exact_path=sum(record.passes > 1 for record in done.records.values()),
        resumed=len(done.resumed),
        backend=f"{arithmetic.name}: {arithmetic.description}",
        notes=tuple(notes),
    )


def _find_finished(
    out: Path, plan: Plan, merge: str, sidecars: Mapping[str, bytes], afresh: bool
) -> _Done | None:
    """What stands at `out`, if it is what this merge would make (by its checksum file and its sizes).

    A run may have been killed when it had published the model, or the same command was given twice.
    """
    just_published = finish_publishing(out)
    if afresh and not just_published:
        return None
    records = checksums.find_model(out, merge, sidecars, plan.shards)
    return None if records is None else _Done(records, set(records))


def _run(
    plan: Plan,
    sink: Sink,
    arithmetic: Arithmetic,
    threads: int | None,
    max_memory: int,
    nonfinite: str,
    cache: SurveyCache | None,
    progress: Progress | None,
) -> _Done:
    """Merge all tensors that are not in the sink already."""
    done, lock, stop = _Done(), threading.Lock(), threading.Event()
    advance = progress.advance if progress else _ignore
    shared = Work(sink, nonfinite, advance, stop, cache)
    crew = arithmetic.crew(plan, threads, max_memory, shared)
    units = make_units(plan.jobs, crew.workers)
    feed = Feed(units, crew.workers, free_memory() // 2, skipped=sink.recorded)
    if progress:
        total = plan.input_bytes + sum(job.output_bytes for job in plan.jobs)
        progress.start(f"merging {len(plan.jobs)} tensors", total)

    def work(number: int) -> None:
        merger = crew.merger(number, lambda: feed.working)
        while (portion := feed.take()) and not stop.is_set():
            left = []
            for job in portion.jobs:
                record = sink.recorded.get(job.name)
                if record is None or not sink.holds(job.name, merger.scratch):
                    left.append(job)
                    continue
                advance(job.input_bytes + job.output_bytes)
                with lock:
                    done.records[job.name] = record
                    done.resumed.add(job.name)
            reports = merger.merge_all(left, portion.direct_inputs)
            feed.done(portion)
            if reports:
                merged = {name: report.record for name, report in reports.items()}
                sink.complete(merged)
                with lock:
                    done.records.update(merged)
                    done.bytes_read += sum(report.bytes_read for report in reports.values())

    pool = ThreadPoolExecutor(crew.workers + feed.readers, thread_name_prefix="fuseo1")
    try:
        try:
            for _ in range(feed.readers):
                pool.submit(feed.read)
            futures = [pool.submit(work, number) for number in range(crew.workers)]
            ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
        except RuntimeError as error:  # of submit; those of the workers are in their futures
            raise MergeError(f"{error}; lower --threads") from error
        finally:
            # A second Ctrl-C must not close the files under a worker: their numbers may be others' by then.
            with held_signals(redeliver=True):
                stop.set()
                feed.close()
                crew.stop()
                pool.shutdown()
                crew.close()
        # The first failure is the cause; the others may be its echo.
        for future in sorted(ended, key=lambda f: f.exception() is None):
            future.result()
        done.notes += crew.notes
        return done
    finally:
        feed.forget_rest()
        if progress:
            progress.close()


def _energy_share(plan: Plan, records: Mapping[str, TensorRecord]) -> dict[str, float]:
    energy: dict[str, float] = {}
    for job in plan.jobs:
        found = records[job.name].energy
        # Other methods than sce learn no energies.
        for x, e in zip(job.inputs[1:], found, strict=True) if found else ():
            energy[x.source.name] = energy.get(x.source.name, 0.0) + e
    total = sum(energy.values())
    return {model: e / total if total else 0.0 for model, e in energy.items()}


def _ignore(_nbytes: int) -> None:
    """No one is told."""
