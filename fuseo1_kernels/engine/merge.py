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
from ..errors import MergeError
from ..methods.nonfinite import check_nonfinite
from ..methods.parameters import check_seed
from ..plan.fingerprint import digest, fingerprint
from ..plan.models import directories, open_lender, open_sources
from ..plan.plan import Plan, make_plan, refuse_problems
from ..plan.sidecars import make_sidecars
from ..version import __version__
from .devices import choose_executor
from .options import DEFAULT_MAX_MEMORY, DEFAULT_SHARD_SIZE, check_sizes
from .result import MergeResult, Progress, energy_share
from .run import Merged, run_plan
from .survey_cache import SurveyCache


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
    executor = choose_executor(backend, device, max_gpu_memory)
    check_nonfinite(nonfinite)
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
            done = run_plan(plan, sink, executor, threads, max_memory, nonfinite, cache, progress)
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
