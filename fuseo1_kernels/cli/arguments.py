"""The arguments of `python -m fuseo1_kernels.merge`."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from ..backends.registry import BACKENDS, GPU_BACKENDS
from ..config.recipes import find_recipe
from ..errors import ConfigError
from ..methods.nonfinite import NONFINITE
from ..version import __version__
from .mergekit_flags import add_mergekit_flags
from .parser import Parser, add_allow_links

_EXAMPLES = """\
examples:
  fuseo1-merge merge.yaml --check
      say what is wrong with the config alone
  fuseo1-merge merge.yaml OUT --dry-run
      say what the merge reads and writes, and what would stop it
  fuseo1-merge merge.yaml OUT
      merge; after an interruption the same command goes on
  fuseo1-merge FuseO1-DeepSeekR1-QwQ-32B-Preview OUT --max-memory 8GiB
      merge by a published recipe, with models from the hub

Flags of mergekit-yaml that have no meaning here are accepted, with a note.
README.md is where to begin; docs/config.md has every key and every method,
docs/command.md exit codes, streams and what is written to them.
"""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*(?:([KMGT])(i?)B?|(B)?)", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes in "5GB", "512MiB", "2G", mergekit's "5B" (billions) or a plain number.

    Raises ArgumentTypeError.
    """
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
    """Return the parser of the command line."""
    parser = Parser(
        "fuseo1-merge",
        "[OPTION ...] CONFIG|RECIPE OUT",
        "Merge Hugging Face checkpoints. The output appears whole or not at all.",
        _EXAMPLES,
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
        type=os.path.expanduser,
        metavar="OUT",
        help="directory of the merged model; optional with --check and --dry-run",
    )
    add = parser.add_argument_group("instead of a merge").add_argument
    add("--list-recipes", action="store_true", help="list the recipes that come with the package")
    add(
        "--dry-run",
        action="store_true",
        help="only plan, from headers alone: sizes, memory, everything that would stop the merge",
    )
    add(
        "--check",
        action="store_true",
        help="only check CONFIG: a line for each problem, exit code 0 or 1; opens no model",
    )
    add("--version", action="version", version=f"fuseo1-kernels {__version__}")
    add = parser.add_argument_group("processors and memory").add_argument
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
    add(
        "--cuda",
        "--gpu-rich",
        action="store_true",
        help="the same as --device cuda (mergekit-yaml's flags)",
    )
    add_limits(add)
    add(
        "--max-gpu-memory",
        type=parse_size,
        metavar="SIZE",
        help="limit of memory on each GPU (default: a quarter of its free memory); larger tensors are merged"
        " on the CPU",
    )
    add_output(parser)
    add = parser.add_argument_group("later merges of the same models").add_argument
    add(
        "--survey-cache",
        type=os.path.expanduser,
        metavar="DIR",
        help="keep surveys in DIR: later merges of the same models read less",
    )
    add(
        "--survey-topk",
        type=_fractions,
        default=(),
        metavar="A,B,...",
        help="more values of select_topk to survey, in the same read, for later merges",
    )
    add = parser.add_argument_group("the config").add_argument
    add(
        "--like-mergekit",
        action="store_true",
        help="ignore what mergekit ignores, with notes: unknown keys, parameters of other methods, a key's first value",
    )
    models = parser.add_argument_group("the models")
    add = models.add_argument
    add(
        "--crop-embeddings",
        "--unsafe-truncate-embeddings",
        action="store_true",
        help="cut embeddings of different vocabulary sizes to the rows that all models have",
    )
    add_of_models(models)
    add(
        "--random-seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the random masks of dare_... and della... (default 0)",
    )
    add_printed(parser)
    add_mergekit_flags(parser)
    return parser


def add_limits(add: Callable[..., Any]) -> None:
    """Add the options that limit threads and memory, by a group's `add_argument`."""
    add(
        "--threads",
        "-j",
        "--num-threads",
        type=_threads,
        help="number of threads (default: all cores); never changes the result",
    )
    add(
        "--max-memory",
        type=parse_size,
        metavar="SIZE",
        help="limit of headers, buffers and survey state (default 2GiB)",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the group of options about the output."""
    add = parser.add_argument_group("the output").add_argument
    add(
        "--shard-size",
        "--out-shard-size",
        type=parse_size,
        metavar="SIZE",
        help="limit of tensor data in one output file, in bytes (default 5GB); as mergekit-yaml measures it, so its 5B"
        " is 5GB",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace the model at OUT, once the new one is complete",
    )
    add(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue an unfinished run of the same merge (default: yes)",
    )


def add_of_models(models: Any) -> None:
    """Add to a group what every merge may be told about its models."""
    add = models.add_argument
    add(
        "--copy-tokenizer",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="copy tokenizer files (default: yes)",
    )
    add_allow_links(models)
    add(
        "--nonfinite",
        choices=NONFINITE,
        default="error",
        help="refuse NaN and infinite elements, or make them NaN (default: error)",
    )


def add_printed(parser: argparse.ArgumentParser) -> None:
    """Add the group of options about what is printed."""
    add = parser.add_argument_group("what is printed").add_argument
    add(
        "--json",
        action="store_true",
        help="print the result, or the error, as one JSON object on standard output",
    )
    add("--quiet", "-q", action="store_true", help="no progress, no notes and no summary")


def check_order(config: str, out: str | None) -> None:
    """Raise ConfigError if OUT, not CONFIG, is what names a config."""
    if out is None or find_recipe(config) is not None:
        return
    place = os.path.expanduser(config)
    if os.path.isdir(place) or not os.path.exists(place):
        is_recipe = find_recipe(out) is not None and not os.path.exists(out)
        if is_recipe or (os.path.isfile(out) and out.endswith((".yaml", ".yml"))):
            raise ConfigError(
                f"{config}: is no config, but {out} is: CONFIG comes first, then OUT, the directory of the merged model"
            )
