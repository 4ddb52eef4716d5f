"""Runs a plan: reads, surveys, fuses and writes, tensor by tensor, in bounded memory."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from . import __version__
from .backends import Backend, load_backend
from .checkpoint.sidecar import check_same_vocabulary, model_card, sidecar_files
from .checkpoint.sink import Sink, find_leftovers, index_json
from .checkpoint.source import Source, open_source
from .config import MergeConfig, load_config, parse_config
from .errors import CheckpointError, ConfigError, MergeError
from .methods import NONFINITE
from .plan import Plan, make_plan
from .recipes import find_recipe, nearest_recipe
from .streaming import Memory, TensorMerger, TensorReport, memory_floor, plan_memory
from .threads import resolve_threads

DEFAULT_SHARD_SIZE = 5_000_000_000
DEFAULT_MAX_MEMORY = 512 << 20

# Below this a worker's chunks get small; fewer workers with more threads each serve better.
_LEAST_WORKER_MEMORY = 48 << 20
_PROBLEMS_SHOWN = 20


class Progress(Protocol):
    """Told how far a merge is; `advance` is called from any thread."""

    def start(self, plan: Plan, total_bytes: int) -> None: ...
    def advance(self, nbytes: int) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class MergeResult:
    """What a merge did.

    Attributes:
        out_dir: where the merged model lies.
        tensors, parameters: how many were merged.
        bytes_read, bytes_written: of tensor data; a tensor read twice counts twice.
        seconds: wall time, from opening the models to the rename that publishes the result.
        shards: names of the weight files.
        energy_share: by target, its part of all selected energy.
        exact_path: tensors whose threshold needed more than one survey pass.
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
    backend: str
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def merge_checkpoints(
    config: str | os.PathLike[str] | Mapping[str, Any] | MergeConfig,
    out_dir: str | os.PathLike[str],
    *,
    backend: str = "auto",
    threads: int | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
    shard_size: int = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    crop_embeddings: bool = False,
    copy_tokenizer: bool = True,
    nonfinite: str = "error",
    progress: Progress | None = None,
) -> MergeResult:
    """Merge Hugging Face checkpoints into `out_dir`, which appears whole or not at all.

    Args:
        config: path of a YAML file, a recipe's name, a mapping, or a MergeConfig (docs/config.md).
        out_dir: must not exist, be empty, or be given up with `overwrite`.
        backend: "auto", "cpu" or "reference".
        threads: default: all cores this process may use. Never changes a byte of the result.
        max_memory: bytes for buffers and survey state together.
        shard_size: most bytes of tensor data in one output file.
        crop_embeddings: cut embeddings of different vocabulary sizes to the smallest one's rows.
        copy_tokenizer: copy tokenizer files beside the weights.
        nonfinite: "error", or "propagate": such elements become NaN and count for nothing else.
        progress: is told how far the merge is.

    Raises:
        MergeError: one message that says what is wrong and what to do; nothing is left at `out_dir`.
    """
    started = time.perf_counter()
    parsed = as_config(config)
    engine = load_backend(backend)
    if nonfinite not in NONFINITE:
        raise MergeError(f"nonfinite: must be {' or '.join(NONFINITE)}, not {nonfinite!r}")
    with ExitStack() as stack:
        sources = open_sources(parsed, stack, progress=progress is not None)
        plan = make_plan(parsed, sources, shard_size=shard_size, crop_embeddings=crop_embeddings)
        refuse_problems(plan)
        lender = open_lender(parsed, sources, stack)
        title = os.path.basename(os.path.realpath(out_dir))
        sidecars = make_sidecars(parsed, plan, sources, lender, title, copy_tokenizer)
        inputs = directories(sources, lender)
        leftovers = leftover_notes(out_dir)
        sink = stack.enter_context(
            Sink(Path(out_dir), plan.shards, overwrite=overwrite, inputs=inputs)
        )
        reports = _run(plan, sink, engine, threads, max_memory, nonfinite, progress)
        for name, data in sidecars.items():
            sink.add_file(name, data)
        sink.publish()
    return MergeResult(
        out_dir=str(out_dir),
        tensors=len(plan.jobs),
        parameters=sum(job.numel for job in plan.jobs),
        bytes_read=sum(r.bytes_read for r in reports),
        bytes_written=sum(job.numel * job.dtype.size for job in plan.jobs),
        seconds=time.perf_counter() - started,
        shards=tuple(shard.file for shard in plan.shards),
        energy_share=_energy_share(reports),
        exact_path=sum(r.passes > 1 for r in reports),
        backend=f"{engine.name}: {engine.description}",
        notes=(*plan.notes, *leftovers),
    )


def as_config(config: str | os.PathLike[str] | Mapping[str, Any] | MergeConfig) -> MergeConfig:
    """The validated config, whatever form it came in."""
    if isinstance(config, MergeConfig):
        return config
    if isinstance(config, Mapping):
        return parse_config(config)
    name = os.fspath(config)
    if os.path.exists(name):
        return load_config(name)
    text = find_recipe(name)
    if text is not None:
        return load_config(name, text)
    near = nearest_recipe(name)
    hint = f"did you mean the recipe {near}?" if near else "--list-recipes lists the recipes"
    raise ConfigError(f"{name}: neither a file nor a recipe; {hint}")


def open_sources(
    config: MergeConfig, stack: ExitStack, *, progress: bool = True, download: bool = True
) -> dict[str, Source]:
    """Open every model that is merged, by the config's names, until `stack` closes."""
    sources: dict[str, Source] = {}
    named: dict[str, str] = {}
    problems = []
    for name in config.model_names():
        try:
            source = open_source(name, download_progress=progress, download=download)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        sources[name] = stack.enter_context(source)
        first = named.setdefault(os.path.realpath(source.path), name)
        if first != name:
            raise ConfigError(f"models {first} and {name} are the same directory; name it once")
    if problems:
        raise CheckpointError("\n  ".join(problems))
    return sources


def open_lender(
    config: MergeConfig, sources: Mapping[str, Source], stack: ExitStack, download: bool = True
) -> Source | None:
    """The model whose tokenizer is asked for, if one is; not merged, it lends its small files alone."""
    if config.tokenizer_files is not None:
        name = config.tokenizer_files.model
    elif config.tokenizer_source is not None:
        name = config.tokenizer_source
    else:
        return None
    if name == "base":
        name = config.base_model
    if name in sources:
        return sources[name]
    return stack.enter_context(open_source(name, weights=False, download=download))


def directories(sources: Mapping[str, Source], lender: Source | None) -> list[Path]:
    """Everything that is read, and so must not be overwritten."""
    return [s.path for s in [*sources.values(), *([lender] if lender else [])]]


def leftover_notes(out_dir: str | os.PathLike[str]) -> list[str]:
    """Name what killed runs left behind: as large as a model, and hidden."""
    return [f"{p}: left by a run that was killed; remove it" for p in find_leftovers(Path(out_dir))]


def refuse_problems(plan: Plan) -> None:
    """Raise one error that lists what makes the merge impossible, if anything does."""
    if not plan.problems:
        return
    shown = list(plan.problems[:_PROBLEMS_SHOWN])
    if len(plan.problems) > len(shown):
        shown.append(f"... and {len(plan.problems) - len(shown)} more")
    raise CheckpointError("the models do not fit together:\n  " + "\n  ".join(shown))


def make_sidecars(
    config: MergeConfig,
    plan: Plan,
    sources: Mapping[str, Source],
    lender: Source | None,
    title: str,
    copy_tokenizer: bool,
) -> dict[str, bytes]:
    """The small files beside the weights: made before any weight is read, so that a mistake shows early."""
    base = sources[config.base_model]
    if lender is not None and config.tokenizer_source is not None:
        check_same_vocabulary(lender, [s for s in sources.values() if s is not lender])
    overrides = config.tokenizer_files.overrides if config.tokenizer_files else {}
    files = sidecar_files(
        base=base,
        tokenizer=lender,
        tokenizer_overrides=overrides,
        chat_template=config.chat_template,
        sources=list(sources.values()),
        out_dtype=plan.dtype_name,
        num_layers=plan.num_layers,
        vocab_size=plan.vocab_size,
        copy_tokenizer=copy_tokenizer,
    )
    files["README.md"] = model_card(
        name=title,
        recipe_yaml=config.to_yaml(),
        base=config.base_model,
        targets=config.target_names(),
        method=config.merge_method,
        dtype=plan.dtype_name,
        versions={"fuseo1-kernels": __version__, "Python": platform.python_version()},
    )
    # mergekit's name for it, which tools on the hub look for.
    files["mergekit_config.yml"] = config.to_yaml().encode()
    index = index_json(plan.shards)
    if index is not None:
        files["model.safetensors.index.json"] = index
    return files


def _run(
    plan: Plan,
    sink: Sink,
    backend: Backend,
    threads: int | None,
    max_memory: int,
    nonfinite: str,
    progress: Progress | None,
) -> list[TensorReport]:
    """Merge all tensors, the largest first so that the workers end together."""
    workers, per_worker, memory = divide(plan, threads, max_memory)
    jobs = sorted(plan.jobs, key=lambda job: -job.numel)
    remaining, lock, stop = iter(jobs), threading.Lock(), threading.Event()
    if progress:
        progress.start(plan, plan.input_bytes + sum(j.numel * j.dtype.size for j in jobs))
    advance = progress.advance if progress else _ignore

    def work() -> list[TensorReport]:
        reports = []
        merger = TensorMerger(backend, sink, memory, per_worker, nonfinite, advance, stop)
        while not stop.is_set():
            with lock:
                job = next(remaining, None)
            if job is None:
                break
            reports.append(merger.merge(job))
        return reports

    try:
        with ThreadPoolExecutor(workers, thread_name_prefix="fuseo1") as pool:
            futures = [pool.submit(work) for _ in range(workers)]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
        # The first failure is the cause; the others may be its echo.
        for future in sorted(done, key=lambda f: f.exception() is None):
            future.result()
        return [report for future in futures for report in future.result()]
    finally:
        if progress:
            progress.close()


def divide(plan: Plan, threads: int | None, max_memory: int) -> tuple[int, int, Memory]:
    """(workers, threads of each, memory of each) for this plan; MergeError if it is too small."""
    threads = resolve_threads(threads)
    needed = max((memory_floor(job) for job in plan.jobs), default=0)
    if needed > max_memory:
        raise MergeError(
            f"--max-memory {max_memory >> 20} MiB is too little for these models; "
            f"the least is {(needed >> 20) + 1} MiB"
        )
    fit = max_memory // max(needed, _LEAST_WORKER_MEMORY)
    workers = max(1, min(threads, len(plan.jobs), fit))
    return workers, max(1, threads // workers), plan_memory(plan.jobs, max_memory // workers)


def _energy_share(reports: Sequence[TensorReport]) -> dict[str, float]:
    energy: dict[str, float] = {}
    for report in sorted(reports, key=lambda r: r.name):
        for model, e in report.energy.items():
            energy[model] = energy.get(model, 0.0) + e
    total = sum(energy.values())
    return {model: e / total if total else 0.0 for model, e in energy.items()}


def _ignore(_nbytes: int) -> None:
    """No one is told."""
