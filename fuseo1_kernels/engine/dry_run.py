"""What a merge would do, from headers alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.checksums import find_model
from ..checkpoint.out_dir import check_out_dir, find_obstacles
from ..checkpoint.partial import partial_path
from ..config.schema import MergeConfig
from ..errors import MergeError
from ..plan.fingerprint import digest, fingerprint
from ..plan.models import directories, open_lender, open_sources
from ..plan.plan import make_plan
from ..plan.sidecars import make_sidecars
from .cpu.pool import CpuExecutor
from .devices import choose_executor
from .options import MergeOptions
from .worker import Executor


@dataclass(frozen=True)
class DryRun:
    """A plan for a person: sizes in bytes, and everything that would stop the merge in `problems`."""

    tensors: int
    parameters: int
    dtype: str
    bytes_to_read: int
    bytes_to_write: int
    peak_memory: int
    shards: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def dry_run(
    config: MergeConfig,
    out_dir: str | os.PathLike[str] | None,
    options: MergeOptions | None = None,
) -> DryRun:
    """Plan a merge and find everything that would stop it, without reading or writing tensor data.

    Models that are not local must be in the hub's cache: nothing is downloaded. Raises MergeError only
    where no plan can be made at all (a model that cannot be opened); the rest is in `problems`.
    """
    options = options or MergeOptions()
    options.check_numbers()
    problems: list[str] = []

    @contextmanager
    def collected() -> Iterator[None]:
        try:
            yield
        except MergeError as error:
            problems.append(str(error))

    memory = 0
    with ExitStack() as stack:
        sources = open_sources(config, stack, progress=False, download=False)
        plan = make_plan(
            config,
            sources,
            shard_size=options.shard_size,
            crop_embeddings=options.crop_embeddings,
            random_seed=options.random_seed,
        )
        problems += plan.problems
        executor: Executor | None = None
        with collected():
            options.check_surveys(config.merge_method)
        notes = list(plan.notes)
        with collected():
            executor = choose_executor(options)
        with collected():
            # What is not here is a problem already; the memory is then that of the CPU.
            memory, more = (executor or CpuExecutor).host_memory(plan, options)
            notes += more
        lender, sidecars = None, {}
        title = "" if out_dir is None else os.path.basename(os.path.realpath(out_dir))
        with collected():
            lender = open_lender(config, sources, stack, download=False)
            sidecars = make_sidecars(config, plan, sources, lender, title, options.copy_tokenizer)
        if out_dir is not None:
            out = Path(out_dir)
            partial = partial_path(Path(os.path.realpath(out)))
            if partial.exists():
                notes.append(
                    f"{partial}: an unfinished merge; only the command that began it continues it"
                )
            # The merge leaves a model of its own alone, unless it is told to make it again.
            again = options.overwrite or not options.resume
            merge = digest(fingerprint(plan, options.nonfinite))
            if not problems and not again and find_model(out, merge, sidecars, plan.shards):
                notes.append(f"{out}: is there already, made by this very merge")
            else:
                with collected():
                    check_out_dir(
                        out, overwrite=options.overwrite, inputs=directories(sources, lender)
                    )
                    # What an unfinished merge has reserved is not needed once more.
                    needed = 0 if partial.exists() else plan.output_bytes
                    if obstacle := find_obstacles(out, needed):
                        raise MergeError(obstacle)
    return DryRun(
        tensors=len(plan.jobs),
        parameters=sum(job.numel for job in plan.jobs),
        dtype=plan.dtype_name,
        bytes_to_read=plan.input_bytes,
        bytes_to_write=plan.output_bytes,
        peak_memory=memory,
        shards=tuple(shard.file for shard in plan.shards),
        problems=tuple(problems),
        notes=tuple(notes),
    )
