"""`python -m fuseo1_kernels.merge CONFIG|RECIPE OUT`: merge checkpoints from the command line."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .backends import BACKENDS, GPU_BACKENDS, first_that_runs
from .errors import BackendError, ConfigError, MergeError
from .methods import NONFINITE

if TYPE_CHECKING:
    from .dry_run import DryRun
    from .engine import MergeResult

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*(?:([KMGT])(i?)B?|(B)?)", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes from "5GB", "512MiB", "2G", or mergekit's "5B" (billions) and plain numbers."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write for example 5GB or 512MiB")
    number, unit, binary, billions = match.groups()
    factor = _UNITS[(unit or billions or "").upper()]
    if binary:
        factor = 1024 ** ("KMGT".index(unit.upper()) + 1)
    size = int(Decimal(number) * factor)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a size must be positive")
    return size


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads, 1 or more")
    return int(text)


def _fractions(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(0 <= value <= 1 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} are not numbers from 0 to 1, such as 0.1,0.5")
    return values


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fuseo1-merge",
        description="Merge Hugging Face checkpoints. The output appears whole or not at all.",
    )
    add = parser.add_argument
    add(
        "config",
        nargs="?",
        metavar="CONFIG|RECIPE",
        help="a YAML file in mergekit's vocabulary, or a recipe's name",
    )
    add(
        "out",
        nargs="?",
        metavar="OUT",
        help="directory of the merged model; optional with --dry-run",
    )
    add("--list-recipes", action="store_true", help="list the recipes that come with the package")
    add(
        "--dry-run",
        action="store_true",
        help="plan from headers alone: sizes, memory, everything that would fail",
    )
    add(
        "--backend",
        default=None,
        choices=("auto", *BACKENDS, *GPU_BACKENDS),
        help="default: auto, the fastest that runs on the device",
    )
    add(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, or several GPUs: cuda:0,cuda:1 (default: cpu, unless --backend is for GPUs;"
        " merges on GPUs have not run on a real one yet)",
    )
    add("--cuda", action="store_true", help="the same as --device cuda, as mergekit-yaml has it")
    add(
        "--threads",
        "-j",
        "--num-threads",
        type=_threads,
        help="default: all cores; never changes the result",
    )
    add(
        "--max-memory",
        type=parse_size,
        metavar="SIZE",
        help="most for buffers and survey state (default 2GiB)",
    )
    add(
        "--max-gpu-memory",
        type=parse_size,
        metavar="SIZE",
        help="most of each GPU's memory (default: a quarter of what is free); larger tensors are merged"
        " on the CPU",
    )
    add(
        "--shard-size",
        "--out-shard-size",
        type=parse_size,
        metavar="SIZE",
        help="most bytes in one output file (default 5GB)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace a model that stands at OUT, once the new one is whole",
    )
    add(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on where an earlier run of this merge stopped (default: yes)",
    )
    add(
        "--survey-cache",
        metavar="DIR",
        help="keep surveys there: later merges of the same models read less",
    )
    add(
        "--survey-topk",
        type=_fractions,
        default=(),
        metavar="A,B,...",
        help="values of select_topk to survey for later merges, in the same read",
    )
    add(
        "--crop-embeddings",
        action="store_true",
        help="cut embeddings of different vocabulary sizes to the smallest",
    )
    add(
        "--copy-tokenizer",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="copy tokenizer files (default: yes)",
    )
    add(
        "--nonfinite",
        choices=NONFINITE,
        default="error",
        help="what NaN or infinite weights do (default: error)",
    )
    add(
        "--random-seed",
        type=int,
        default=0,
        metavar="N",
        help="what the random masks of dare_... and della... are drawn from (default 0)",
    )
    add(
        "--json", action="store_true", help="print the result as one JSON object on standard output"
    )
    add("--quiet", "-q", action="store_true", help="no progress and no summary")
    add("--version", action="version", version=f"fuseo1-kernels {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for a failed merge, 130 if interrupted."""
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.list_recipes:
        return _list_recipes()
    if options.config is None:
        parser.error("give a config or a recipe's name (--list-recipes lists them)")
    if options.out is None and not options.dry_run:
        parser.error("give OUT, the directory of the merged model")
    _allow_many_files()
    try:
        with _sigterm_interrupts():
            return _merge(options)
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


def _merge(options: argparse.Namespace) -> int:
    from . import engine, prepare

    config = prepare.as_config(options.config)
    device = _device(options)
    keywords: dict[str, Any] = {
        "backend": _backend(options, device),
        "device": device,
        "max_gpu_memory": options.max_gpu_memory,
        "threads": options.threads,
        "max_memory": options.max_memory or engine.DEFAULT_MAX_MEMORY,
        "shard_size": options.shard_size or engine.DEFAULT_SHARD_SIZE,
        "overwrite": options.overwrite,
        "crop_embeddings": options.crop_embeddings,
        "copy_tokenizer": options.copy_tokenizer,
        "random_seed": options.random_seed,
    }
    if options.dry_run:
        from .dry_run import dry_run

        planned = dry_run(
            config,
            options.out,
            nonfinite=options.nonfinite,
            resume=options.resume,
            **keywords,
        )
        print(json.dumps(planned.as_dict()) if options.json else _describe_plan(planned))
        return 1 if planned.problems else 0

    progress = None
    if not options.quiet:
        from .progress import make_progress

        progress = make_progress()
    result = engine.merge_checkpoints(
        config,
        options.out,
        nonfinite=options.nonfinite,
        resume=options.resume,
        survey_cache=options.survey_cache,
        survey_topk=options.survey_topk,
        progress=progress,
        **keywords,
    )
    if options.json:
        print(json.dumps(result.as_dict()))
    elif not options.quiet:
        print(_describe_result(result))
    return 0


def _say_what_is_kept(options: argparse.Namespace, error: str) -> None:
    """Say how to go on, unless the error is about what is kept."""
    from .checkpoint.partial import partial_path

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


def _list_recipes() -> int:
    from .recipes import list_recipes

    for recipe in list_recipes():
        print(f"{recipe.name}\n    {recipe.description}")
    return 0


def _describe_plan(plan: DryRun) -> str:
    from .plan import counted

    lines = [
        f"tensors      {plan.tensors} ({_short(plan.parameters)} parameters, {plan.dtype})",
        f"to read      {_short(plan.bytes_to_read)}B (from storage once)",
        f"to write     {_short(plan.bytes_to_write)}B in {counted(len(plan.shards), 'file')}",
        f"memory       at most {plan.peak_memory / 2**20:.0f} MiB of buffers and survey state",
    ]
    lines += [f"note: {note}" for note in plan.notes]
    lines += [f"problem: {problem}" for problem in plan.problems]
    return "\n".join(lines)


def _describe_result(result: MergeResult) -> str:
    from .plan import counted
    from .progress import per_second

    moved = result.bytes_read + result.bytes_written
    lines = [
        f"{result.out_dir}: {counted(result.tensors, 'tensor')}, "
        f"{_short(result.parameters)} parameters, {counted(len(result.shards), 'file')}"
    ]
    if moved:
        lines.append(
            f"{result.seconds:.2f} s, {_short(result.bytes_read)}B read, {_short(result.bytes_written)}B "
            f"written, {per_second(moved / result.seconds)}; {result.backend}"
        )
    if result.energy_share:
        lines.append("energy share of each source:")
    lines += [f"  {share:7.2%}  {model}" for model, share in result.energy_share.items()]
    if 0 < result.resumed < result.tensors:
        were = "tensor was" if result.resumed == 1 else "tensors were"
        lines.append(f"note: {result.resumed} {were} there from an earlier run")
    if result.exact_path:
        lines.append(
            f"note: {counted(result.exact_path, 'tensor')} took the slower exact top-k path"
        )
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join(lines)


def _short(number: int) -> str:
    """Three digits and a decimal prefix."""
    value, prefixes = float(number), iter(("", "k", "M", "G", "T"))
    prefix = next(prefixes)
    while value >= 1000 and prefix != "T":
        value, prefix = value / 1000, next(prefixes)
    return f"{value:.3g} {prefix}"


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


if __name__ == "__main__":
    sys.exit(main())
