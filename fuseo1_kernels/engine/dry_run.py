"""Plans a merge from headers alone and collects everything that would stop it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.checksums import find_model
from ..checkpoint.out_dir import check_out_dir, check_out_name, check_place, find_obstacles
from ..checkpoint.partial import is_unfinished, partial_path
from ..checkpoint.sidecar import Sidecars
from ..config.schema import MergeConfig
from ..errors import MergeError, counted, first_names, worded_os_errors
from ..plan.alignment import align
from ..plan.fingerprint import fingerprint, merge_digest
from ..plan.models import inputs, open_lender, open_sources
from ..plan.plan import make_plan
from ..plan.sidecars import make_sidecars
from .cpu.pool import CpuExecutor
from .devices import choose_executor
from .options import MergeOptions
from .worker import Executor


@dataclass(frozen=True)
class DryRun:
    """The result of a dry run.

    Attributes:
        tensors, parameters: how many the merged model has.
        dtype: the dtype of most of the output, by torch's name.
        bytes_to_read, bytes_to_write: bytes of tensor data.
        peak_memory: the most bytes of host memory for headers, buffers and survey state.
        shards: names of the weight files.
        deletes: paths in the output directory of the files and folders that are replaced.
        problems: everything that would stop the merge; empty if nothing would.
        notes: remarks, for example on tensors that are left out.
    """

    tensors: int
    parameters: int
    dtype: str
    bytes_to_read: int
    bytes_to_write: int
    peak_memory: int
    shards: tuple[str, ...]
    deletes: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@worded_os_errors("the plan")
def dry_run(
    config: MergeConfig,
    out_dir: str | os.PathLike[str] | None,
    options: MergeOptions | None = None,
) -> DryRun:
    """Plan a merge and collect everything that would stop it, without reading or writing tensor data.

    Nothing is downloaded: models that are not local must be in the hub's cache.

    Raises:
        MergeError: no plan can be made at all, for example because a model cannot be opened. Anything else that
            would stop the merge is listed in `problems`.
    """
    options = options or MergeOptions()
    options.check_numbers()
    if out_dir is not None:
        check_out_name(out_dir)
    problems: list[str] = []

    @contextmanager
    def collected() -> Iterator[None]:
        try:
            yield
        except MergeError as error:
            problems.extend(error.args)

    if out_dir is not None:
        try:
            check_place(out_dir)
        except MergeError as error:  # nothing else that is looked at there would be to the point
            problems.append(str(error))
            out_dir = None
    options.check_links(out_dir)
    memory = 0
    deletes: list[str] = []
    with ExitStack() as stack:
        sources = open_sources(
            config,
            stack,
            progress=False,
            download=False,
            allow_links=options.allow_links,
            max_memory=options.max_memory,
        )
        lender = None
        # Without the output's tokens there is no plan.
        with collected() if config.aligned_to is None else nullcontext():
            lender = open_lender(config, sources, stack, False, options.allow_links)
        alignment = align(config, sources, lender, options.max_memory)
        plan = make_plan(
            config,
            sources,
            shard_size=options.shard_size,
            crop_embeddings=options.crop_embeddings,
            random_seed=options.random_seed,
            alignment=alignment,
        )
        problems += plan.problems
        executor: Executor | None = None
        with collected():
            options.check_surveys(config.merge_method)
        notes = [*config.notes, *plan.notes]
        with collected():
            executor = choose_executor(options)
        with collected():
            # Without an executor, which is a problem already, report the memory of a merge on the CPU.
            memory, memory_notes = (executor or CpuExecutor).host_memory(plan, options)
            notes += memory_notes
        sidecars = Sidecars({}, [])
        with collected():
            sidecars = make_sidecars(
                config,
                plan,
                sources,
                lender,
                alignment,
                out_dir,
                options.copy_tokenizer,
                options.allow_links,
                options.max_memory,
            )
        notes += sidecars.notes
        if out_dir is not None:
            out = Path(out_dir)
            unfinished = False
            with collected():
                unfinished = is_unfinished(out)
            if unfinished:
                partial = partial_path(Path(os.path.realpath(out)))
                notes.append(
                    f"{partial}: an unfinished merge; only the command that began it continues it"
                )
            # A merge keeps a finished model of its own, unless the options say to start over.
            start_over = options.overwrite or not options.resume
            identity = merge_digest(fingerprint(plan, options.nonfinite))
            if (
                not problems
                and not start_over
                and find_model(out, identity, sidecars.files, plan.shards)
            ):
                notes.append(f"{out}: is there already, made by this very merge")
            else:
                with collected():
                    deletes = check_out_dir(
                        out, overwrite=options.overwrite, inputs=inputs(sources, lender)
                    )
                    if files := [name for name in deletes if not name.endswith("/")]:
                        many = counted(len(files), "file")
                        notes.append(
                            f"{out}: --overwrite deletes {many} there: {first_names(files)}"
                        )
                    # An unfinished merge has already reserved its disk space.
                    needed = 0 if unfinished else plan.output_bytes
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
        deletes=tuple(deletes),
        problems=tuple(problems),
        notes=tuple(notes),
    )
