"""The command line of `python -m fuseo1_kernels.merge`."""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from ..backends.registry import BACKENDS, first_that_runs
from ..engine.tuning import DEFAULT_TUNING, Tuning
from ..errors import BackendError, ConfigError, MergeError
from .arguments import make_parser
from .report import describe_plan, describe_result, list_recipe_names

if TYPE_CHECKING:
    from ..engine.options import MergeOptions


def main(argv: list[str] | None = None, *, tuning: Tuning = DEFAULT_TUNING) -> int:
    """Run the command line; returns the exit code: 0, 1 for a failed merge, 130 if interrupted.

    `tuning` has the engine's sizes, for tests.
    """
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.list_recipes:
        return list_recipe_names()
    if options.config is None:
        parser.error("give a config or a recipe's name (--list-recipes lists them)")
    if options.out is None and not options.dry_run:
        parser.error("give OUT, the directory of the merged model")
    _allow_many_files()
    try:
        with _sigterm_interrupts():
            return _merge(options, tuning)
    except MergeError as error:
        print(f"fuseo1-merge: error: {error}", file=sys.stderr)
        _say_what_is_kept(options, str(error))
        return 1
    except KeyboardInterrupt:
        untouched = f"; nothing was written to {options.out}" if options.out is not None else ""
        print(f"fuseo1-merge: interrupted{untouched}", file=sys.stderr)
        _say_what_is_kept(options, "")
        return 130
    except MemoryError:
        print(
            "fuseo1-merge: error: out of memory; lower --max-memory or --threads", file=sys.stderr
        )
        return 1


def _allow_many_files() -> None:
    """A merge holds two descriptors for every shard of every model; shells often allow 1024, systems far more."""
    with suppress(ValueError, OSError):  # a system that does not allow what it says
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _merge(arguments: argparse.Namespace, tuning: Tuning) -> int:
    from ..config.load import as_config
    from ..engine import merge as engine

    config = as_config(arguments.config)
    options = _options(arguments, tuning)
    if arguments.dry_run:
        from ..engine.dry_run import dry_run

        planned = dry_run(config, arguments.out, options)
        print(json.dumps(planned.as_dict()) if arguments.json else describe_plan(planned))
        return 1 if planned.problems else 0

    progress = None
    if not arguments.quiet:
        from .progress import make_progress

        progress = make_progress()
    result = engine.run_merge(config, arguments.out, options, progress)
    if arguments.json:
        print(json.dumps(result.as_dict()))
    elif not arguments.quiet:
        print(describe_result(result))
    return 0


def _options(arguments: argparse.Namespace, tuning: Tuning) -> MergeOptions:
    from ..engine.options import DEFAULT_MAX_MEMORY, DEFAULT_SHARD_SIZE, MergeOptions

    device = _device(arguments)
    return MergeOptions(
        backend=_backend(arguments, device),
        device=device,
        threads=arguments.threads,
        max_memory=arguments.max_memory or DEFAULT_MAX_MEMORY,
        max_gpu_memory=arguments.max_gpu_memory,
        shard_size=arguments.shard_size or DEFAULT_SHARD_SIZE,
        overwrite=arguments.overwrite,
        crop_embeddings=arguments.crop_embeddings,
        copy_tokenizer=arguments.copy_tokenizer,
        nonfinite=arguments.nonfinite,
        resume=arguments.resume,
        survey_cache=arguments.survey_cache,
        survey_topk=arguments.survey_topk,
        random_seed=arguments.random_seed,
        tuning=tuning,
    )


def _say_what_is_kept(options: argparse.Namespace, error: str) -> None:
    """Say how to go on, unless the error is about what is kept."""
    from ..checkpoint.partial import partial_path

    if options.out is not None and not options.dry_run:
        partial = partial_path(Path(os.path.realpath(options.out)))
        if partial.exists() and str(partial) not in error:
            print(
                f"fuseo1-merge: {partial} keeps what was merged: the same command goes on from there",
                file=sys.stderr,
            )


def _device(options: argparse.Namespace) -> str | None:
    """The device that was asked for, if one was."""
    device: str | None = options.device
    if not options.cuda:
        return device
    if device is not None and not device.startswith("cuda"):
        raise ConfigError(f"--cuda contradicts --device {device}; drop one of them")
    if options.backend in BACKENDS:
        raise ConfigError(f"--cuda contradicts --backend {options.backend}; drop one of them")
    return device or "cuda"


def _backend(options: argparse.Namespace, device: str | None) -> str:
    """The backend to take; what is slower than it should be is said, even if --quiet."""
    name: str = options.backend or "auto"
    if name != "auto" or device not in (None, "cpu"):
        return name
    try:
        backend, reasons = first_that_runs()
    except BackendError:
        return name  # whoever loads it says so
    for reason in reasons:
        print(f"note: {reason}; {backend.name} is used instead", file=sys.stderr)
    return backend.name


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends a merge as Ctrl-C does: what was merged is kept, for the same command to go on from."""

    def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
