"""The command line of `python -m fuseo1_kernels.merge`."""

from __future__ import annotations

import argparse
import os
import resource
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..backends.registry import BACKENDS, first_that_runs
from ..engine.tuning import DEFAULT_TUNING, Tuning
from ..errors import BackendError, ConfigError, MergeError
from .arguments import check_order, make_parser
from .check import check_config
from .interruption import Interruption
from .report import (
    describe_plan,
    describe_result,
    describe_system_error,
    list_recipe_names,
    print_error,
    print_json,
    print_lines,
)
from .terminal import say

if TYPE_CHECKING:
    from ..config.schema import MergeConfig
    from ..engine.options import MergeOptions


def main(
    argv: list[str] | None = None,
    *,
    tuning: Tuning = DEFAULT_TUNING,
    interruption: Interruption | None = None,
) -> int:
    """Run the command; return the exit code: 0, 1 for a failed merge, 130 or 143 if a signal interrupted it.

    `tuning`: the engine's sizes; tests pass small ones. `interruption`: what runs this function already.
    """
    if interruption is None:
        interruption = Interruption("fuseo1-merge")
        return interruption.run(partial(main, argv, tuning=tuning, interruption=interruption))
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.list_recipes:
        return list_recipe_names()
    if arguments.config is None:
        parser.error("give a config or a recipe's name (--list-recipes lists them)")
    if arguments.check:
        return check_config(arguments.config, arguments.like_mergekit, as_json=arguments.json)
    if arguments.out is None and not arguments.dry_run:
        parser.error("give OUT, the directory of the merged model")
    return run(parser.prog, arguments, partial(_load, arguments), tuning, interruption)


def run(
    program: str,
    arguments: argparse.Namespace,
    load: Callable[[], MergeConfig],
    tuning: Tuning,
    interruption: Interruption,
) -> int:
    """Merge by the config that `load` returns; return the exit code. `program`: the command's name in messages."""
    _allow_many_files()
    interruption.as_json = arguments.json
    interruption.describe = partial(_what_is_left, program, arguments, _inode(arguments.out))
    try:
        return _merge(arguments, load(), tuning)
    except (MergeError, OSError, UnicodeError) as error:
        if interruption.number is not None:  # its KeyboardInterrupt became this
            raise
        lines = error.args if isinstance(error, MergeError) else [describe_system_error(error)]
        print_error(program, *lines, as_json=arguments.json)
        if hint := _resume_hint(program, arguments, str(error)):
            say(hint)
        return 1
    except MemoryError:
        reason = "out of memory; lower --max-memory or --threads"
        print_error(program, reason, as_json=arguments.json)
        return 1


def _load(arguments: argparse.Namespace) -> MergeConfig:
    from ..config.load import as_config

    check_order(arguments.config, arguments.out)
    return as_config(arguments.config, like_mergekit=arguments.like_mergekit)


def _inode(out: str | None) -> tuple[int, int] | None:
    """Return what identifies the directory at `out`; None if there is none."""
    try:
        status = os.stat(out or "")
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _what_is_left(
    program: str, arguments: argparse.Namespace, before: tuple[int, int] | None
) -> list[str]:
    """Say what an interrupted merge left, and how it goes on: `before` identifies the directory at OUT at its begin."""
    if arguments.out is None:
        return []
    if _inode(arguments.out) not in (None, before):
        return [f"{arguments.out} was complete by then"]
    hint = _resume_hint(program, arguments, "")
    return [f"nothing was written to {arguments.out}", *([hint] if hint else [])]


def _allow_many_files() -> None:
    """Raise the limit of open files: a merge opens every shard of every model twice, and shells often allow 1024."""
    with suppress(ValueError, OSError):  # some systems refuse their own hard limit
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _merge(arguments: argparse.Namespace, config: MergeConfig, tuning: Tuning) -> int:
    from ..engine import merge as engine

    if not arguments.quiet:
        for note in arguments.ignored:
            say(f"note: {note}")
    options = _options(arguments, tuning)
    if arguments.dry_run:
        from ..engine.dry_run import dry_run

        planned = dry_run(config, arguments.out, options)
        if arguments.json:
            print_json(planned)
        else:
            print_lines(describe_plan(planned))
        return 1 if planned.problems else 0

    progress = None
    if not arguments.quiet:
        from .progress import make_progress

        progress = make_progress()
    result = engine.run_merge(config, arguments.out, options, progress)
    if arguments.json:
        print_json(result)
    elif not arguments.quiet:
        print_lines(describe_result(result))
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
        allow_links=arguments.allow_links,
        nonfinite=arguments.nonfinite,
        resume=arguments.resume,
        survey_cache=arguments.survey_cache,
        survey_topk=arguments.survey_topk,
        random_seed=arguments.random_seed,
        tuning=tuning,
    )


def _resume_hint(program: str, arguments: argparse.Namespace, error: str) -> str:
    """Return how to continue the merge; "" if there is nothing, or the error is about the partial output itself."""
    from ..checkpoint.partial import partial_path

    if arguments.out is None or arguments.dry_run:
        return ""
    try:
        path = partial_path(Path(os.path.realpath(arguments.out)))
    except (OSError, ValueError):  # no such place: the current directory is gone, say
        return ""
    if not os.path.exists(path) or str(path) in error:
        return ""
    return f"{program}: {path} keeps what was merged: the same command goes on from there"


def _device(arguments: argparse.Namespace) -> str | None:
    """Return the device of --device or --cuda; None without both. Raises ConfigError if arguments contradict."""
    device: str | None = arguments.device
    if not arguments.cuda:
        return device
    if device is not None and not device.startswith("cuda"):
        raise ConfigError(f"--cuda contradicts --device {device}; drop one of them")
    if arguments.backend in BACKENDS:
        raise ConfigError(f"--cuda contradicts --backend {arguments.backend}; drop one of them")
    return device or "cuda"


def _backend(arguments: argparse.Namespace, device: str | None) -> str:
    """Return the backend's name. Print a note, even with --quiet, if a faster one cannot run."""
    name: str = arguments.backend or "auto"
    if name != "auto" or device not in (None, "cpu"):
        return name
    try:
        backend, reasons = first_that_runs()
    except BackendError:
        return name  # loading it raises the same error later
    for reason in reasons:
        say(f"note: {reason}; {backend.name} is used instead")
    return backend.name
