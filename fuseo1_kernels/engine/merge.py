"""Merges checkpoints: opens the models, makes a plan, runs it and publishes the result."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..checkpoint import checksums
from ..checkpoint.out_dir import check_out_name, check_place
from ..checkpoint.partial import finish_publishing
from ..checkpoint.signals import held_signals, safe_point
from ..checkpoint.sink import Sink
from ..config.load import AnyConfig, as_config
from ..config.schema import MergeConfig
from ..errors import SourceTouchedError, printable, worded_os_errors
from ..plan.alignment import align
from ..plan.fingerprint import fingerprint, merge_digest, tensors_from
from ..plan.models import AllowLinks, inputs, open_lender, open_sources
from ..plan.plan import Plan, make_plan, refuse_problems
from ..plan.sidecars import make_sidecars
from ..version import __version__
from .devices import choose_executor
from .options import DEFAULT_MAX_MEMORY, DEFAULT_SHARD_SIZE, MergeOptions
from .result import MergeResult, Progress, energy_share, fits
from .run import Merged, run_plan
from .survey_cache import SurveyCache
from .tuning import DEFAULT_TUNING, Tuning

# How often a model's file may be touched during a merge.
_MOST_TOUCHES = 3


def merge_checkpoints(
    config: AnyConfig,
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
    allow_links: AllowLinks = (),
    nonfinite: str = "error",
    resume: bool = True,
    survey_cache: str | os.PathLike[str] | None = None,
    survey_topk: Sequence[float] = (),
    random_seed: int = 0,
    progress: Progress | None = None,
    tuning: Tuning = DEFAULT_TUNING,
) -> MergeResult:
    """Merge Hugging Face checkpoints into the directory `out_dir`, which appears complete or not at all.

    Until then the output is written to `OUT.partial`. After a failure, an interruption or a kill, the same call
    resumes from there and ends with the same bytes. A finished model of the same merge is kept as it is.

    Every keyword but `progress` is a field of MergeOptions (engine/options.py), which has the details.

    Args:
        config: path of a YAML file, name of a recipe, a mapping, a list of mappings, or a MergeConfig (docs/config.md).
        out_dir: the output directory. It must not exist or be empty, unless `overwrite` is set.
        backend: "auto", "cpu" or "reference"; on GPUs "auto", "cuda" or "triton".
        device: "cpu", "cuda", "cuda:1" or several GPUs, "cuda:0,cuda:1". None: the CPU, unless `backend` is for GPUs.
        threads: number of threads. None: one for each core that this process may use.
        max_memory: the most bytes of host memory for headers, buffers and survey state.
        max_gpu_memory: the most bytes of memory on each GPU. None: a quarter of its free memory.
        shard_size: the most bytes of tensor data in one output file.
        overwrite: replace the model at `out_dir` once the new one is complete.
        crop_embeddings: cut embeddings of different vocabulary sizes to the rows that all models have.
        copy_tokenizer: copy tokenizer files to the output.
        allow_links: directories outside of the models to which links in them may lead.
        nonfinite: "error" refuses NaN and infinite elements; "propagate" makes them NaN.
        resume: continue an unfinished run of the same merge.
        survey_cache: directory that keeps surveys for later merges of the same models. None: surveys are not kept.
        survey_topk: more values of select_topk, in [0, 1], to survey in the same read (sce).
        random_seed: seed of random masks (DARE, DELLA).
        progress: receives the number of bytes done.
        tuning: sizes of chunks, batches and copies.

    Returns:
        MergeResult: sizes, time, energy shares and notes.

    Raises:
        KeyboardInterrupt: or what else the program's handlers of SIGINT and SIGTERM raise, at a safe point. If the
            signal came while the model was published, it is at `out_dir` whole.
        MergeError: the merge cannot be done or failed. The message says what is wrong and what to do; `out_dir` is
            as it was before.
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
        allow_links=allow_links,
        nonfinite=nonfinite,
        resume=resume,
        survey_cache=survey_cache,
        survey_topk=survey_topk,
        random_seed=random_seed,
        tuning=tuning,
    )
    return run_merge(as_config(config), out_dir, options, progress)


@worded_os_errors("the merge")
def run_merge(
    config: MergeConfig,
    out_dir: str | os.PathLike[str],
    options: MergeOptions,
    progress: Progress | None = None,
) -> MergeResult:
    """As merge_checkpoints, with the options in one record. Raises MergeError."""
    touches = 0
    while True:
        try:
            result = _run(config, out_dir, options, progress)
        except SourceTouchedError:
            # A backup that links files, say. What was merged from the file may be of another version.
            if touches == _MOST_TOUCHES:
                raise
            touches += 1
            options = replace(options, resume=True)
            continue
        if not touches:
            return result
        note = "a model's file was touched during the merge, which went on with it as it is now"
        return replace(result, notes=(*result.notes, note))


def _run(
    config: MergeConfig,
    out_dir: str | os.PathLike[str],
    options: MergeOptions,
    progress: Progress | None,
) -> MergeResult:
    started = time.perf_counter()
    out = check_place(out_dir)
    options.check_numbers()
    options.check_links(out)
    check_out_name(out_dir)
    executor = choose_executor(options)
    options.check_surveys(config.merge_method)
    with ExitStack() as stack:
        sources = open_sources(
            config,
            stack,
            progress=progress is not None,
            allow_links=options.allow_links,
            max_memory=options.max_memory,
        )
        lender = open_lender(config, sources, stack, allow_links=options.allow_links)
        alignment = align(config, sources, lender, options.max_memory)
        plan = make_plan(
            config,
            sources,
            shard_size=options.shard_size,
            crop_embeddings=options.crop_embeddings,
            random_seed=options.random_seed,
            alignment=alignment,
        )
        refuse_problems(plan)
        sidecars, notes = make_sidecars(
            config,
            plan,
            sources,
            lender,
            alignment,
            out,
            options.copy_tokenizer,
            options.allow_links,
            options.max_memory,
        )
        del alignment  # a vocabulary takes tens of megabytes
        notes = [*config.notes, *plan.notes, *notes]
        identity = fingerprint(plan, options.nonfinite)
        digest = merge_digest(identity)
        start_over = options.overwrite or not options.resume
        merged = _find_finished(out, plan, digest, sidecars, start_over)
        if merged is not None:
            notes.append("was there already, made by this very merge; nothing was done")
        else:
            cache = None
            if options.survey_cache is not None:
                cache = stack.enter_context(
                    SurveyCache(Path(options.survey_cache), options.survey_topk)
                )
            # From here on a signal is heard at safe points alone: what was made is then known, and closed.
            stack.enter_context(held_signals())
            sink = stack.enter_context(
                Sink(
                    out,
                    plan.shards,
                    identity,
                    overwrite=options.overwrite,
                    inputs=inputs(sources, lender),
                    resume=options.resume,
                    tensors_from=partial(tensors_from, plan),
                )
            )
            notes += map(_touched_note, sorted(sink.touched))
            merged = run_plan(plan, sink, executor, options, cache, progress)
            notes += merged.notes + (cache.problems if cache else [])
            sidecars[checksums.FILE] = checksums.make_checksums(
                made_by=f"fuseo1-kernels {__version__}",
                merge=digest,
                options=checksums.Options(
                    crop_embeddings=options.crop_embeddings,
                    nonfinite=options.nonfinite,
                    random_seed=int(options.random_seed),
                ),
                files=sidecars,
                shards=plan.shards,
                tensors=merged.records,
            )
            for name, data in sidecars.items():
                sink.add_file(name, data)
            for source in sources.values():
                source.close()
            safe_point()
            sink.publish()
    return MergeResult(
        out_dir=str(out_dir),
        tensors=len(plan.jobs),
        parameters=sum(job.numel for job in plan.jobs),
        bytes_read=merged.bytes_read,
        bytes_written=sum(j.output_bytes for j in plan.jobs if j.name not in merged.resumed),
        seconds=time.perf_counter() - started,
        shards=tuple(shard.file for shard in plan.shards),
        energy_share=energy_share(plan, merged.records),
        exact_path=sum(record.passes > 1 for record in merged.records.values()),
        resumed=len(merged.resumed),
        backend=f"{executor.name}: {executor.description}",
        notes=tuple(notes),
    )


def _touched_note(file: str) -> str:
    return (
        f"{printable(file)}: its time of change was another when the merge went on (a new name, other rights, or other"
        " bytes); what had been merged from it was merged anew"
    )


def _find_finished(
    out: Path, plan: Plan, identity: str, sidecars: Mapping[str, bytes], start_over: bool
) -> Merged | None:
    """Return the finished model of this merge at `out`, recognized by its checksum file and file sizes; else None.

    There is one if the same command was run twice, or if a run was killed while it published the model. The latter
    counts even if the merge is to start over.
    """
    just_published = finish_publishing(out)
    if start_over and not just_published:
        return None
    records = checksums.find_model(out, identity, sidecars, plan.shards)
    if records is None or not all(fits(records[job.name], job) for job in plan.jobs):
        return None
    return Merged(records, set(records))
