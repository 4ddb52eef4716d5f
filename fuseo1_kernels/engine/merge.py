"""Runs a plan: reads, surveys, fuses and writes, tensor by tensor, in bounded memory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..checkpoint import checksums
from ..checkpoint.partial import finish_publishing
from ..checkpoint.sink import Sink
from ..config.load import as_config
from ..config.schema import MergeConfig
from ..plan.fingerprint import digest, fingerprint
from ..plan.models import directories, open_lender, open_sources
from ..plan.plan import Plan, make_plan, refuse_problems
from ..plan.sidecars import make_sidecars
from ..version import __version__
from .devices import choose_executor
from .options import DEFAULT_MAX_MEMORY, DEFAULT_SHARD_SIZE, MergeOptions
from .result import MergeResult, Progress, energy_share
from .run import Merged, run_plan
from .survey_cache import SurveyCache
from .tuning import DEFAULT_TUNING, Tuning


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
    tuning: Tuning = DEFAULT_TUNING,
) -> MergeResult:
    """Merge Hugging Face checkpoints into `out_dir`, which appears whole or not at all.

    The work lies in `OUT.partial` until then. After a failure, an interruption or a kill the same call
    goes on from there and ends with the same bytes; a model that this very merge has made is left as it is.

    Args:
        config: path of a YAML file, a recipe's name, a mapping, or a MergeConfig (docs/config.md).
        out_dir: must not exist, be empty, or be given up with `overwrite`.
        backend, device, threads, max_memory, max_gpu_memory, shard_size, overwrite, crop_embeddings, copy_tokenizer,
            nonfinite, resume, survey_cache, survey_topk, random_seed, tuning: the fields of MergeOptions
            (engine/options.py), with its defaults. Sizes are in bytes.
        progress: reports how far the merge is.

    Raises:
        MergeError: one message that says what is wrong and what to do; nothing is left at `out_dir`.
    """
    options = MergeOptions(
        backend=backend,
        device=device,
        threads=threads,
        max_memory=max_memory,
        max_gpu_memory=max_gpu_memory,
        shard_size=shard_size,
        overwrite=overwrite,
        crop_embeddings=crop_embeddings,
        copy_tokenizer=copy_tokenizer,
        nonfinite=nonfinite,
        resume=resume,
        survey_cache=survey_cache,
        survey_topk=survey_topk,
        random_seed=random_seed,
        tuning=tuning,
    )
    return run_merge(as_config(config), out_dir, options, progress)


def run_merge(
    config: MergeConfig,
    out_dir: str | os.PathLike[str],
    options: MergeOptions,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge into the directory `out_dir`; see merge_checkpoints. Raises MergeError."""
    started = time.perf_counter()
    out = Path(out_dir)
    options.check_numbers()
    executor = choose_executor(options)
    options.check_surveys(config.merge_method)
    with ExitStack() as stack:
        sources = open_sources(config, stack, progress=progress is not None)
        plan = make_plan(
            config,
            sources,
            shard_size=options.shard_size,
            crop_embeddings=options.crop_embeddings,
            random_seed=options.random_seed,
        )
        refuse_problems(plan)
        lender = open_lender(config, sources, stack)
        title = os.path.basename(os.path.realpath(out))
        sidecars = make_sidecars(config, plan, sources, lender, title, options.copy_tokenizer)
        identity = fingerprint(plan, options.nonfinite)
        notes = list(plan.notes)
        afresh = options.overwrite or not options.resume
        done = _find_finished(out, plan, digest(identity), sidecars, afresh)
        if done is not None:
            notes.append("was there already, made by this very merge; nothing was done")
        else:
            cache = None
            if options.survey_cache is not None:
                cache = stack.enter_context(
                    SurveyCache(Path(options.survey_cache), options.survey_topk)
                )
            sink = stack.enter_context(
                Sink(
                    out,
                    plan.shards,
                    identity,
                    overwrite=options.overwrite,
                    inputs=directories(sources, lender),
                    resume=options.resume,
                )
            )
            done = run_plan(plan, sink, executor, options, cache, progress)
            notes += done.notes + (cache.problems if cache else [])
            sidecars[checksums.FILE] = checksums.make_checksums(
                made_by=f"fuseo1-kernels {__version__}",
                merge=digest(identity),
                options={
                    "crop_embeddings": options.crop_embeddings,
                    "nonfinite": options.nonfinite,
                    "random_seed": int(options.random_seed),
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
        energy_share=energy_share(plan, done.records),
        exact_path=sum(record.passes > 1 for record in done.records.values()),
        resumed=len(done.resumed),
        backend=f"{executor.name}: {executor.description}",
        notes=tuple(notes),
    )


def _find_finished(
    out: Path, plan: Plan, merge: str, sidecars: Mapping[str, bytes], afresh: bool
) -> Merged | None:
    """What stands at `out`, if it is what this merge would make (by its checksum file and its sizes).

    A run may have been killed when it had published the model, or the same command was given twice.
    """
    just_published = finish_publishing(out)
    if afresh and not just_published:
        return None
    records = checksums.find_model(out, merge, sidecars, plan.shards)
    return None if records is None else Merged(records, set(records))
