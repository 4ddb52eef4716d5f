"""The command line of `python -m fuseo1_kernels.average`."""

from __future__ import annotations

import argparse
import os
import re
from functools import partial
from typing import TYPE_CHECKING

from ..engine.tuning import DEFAULT_TUNING, Tuning
from ..methods.average import AVERAGE, SCHEDULES
from ..version import __version__
from . import merge
from .arguments import add_limits, add_of_models, add_output, add_printed
from .interruption import Interruption
from .parser import Parser

if TYPE_CHECKING:
    from ..config.schema import MergeConfig

_EXAMPLES = """\
examples:
  fuseo1-average RUN/checkpoint-* OUT
      the mean of all checkpoints of a run
  fuseo1-average RUN/checkpoint-* OUT --schedule ema --decay 0.9
      the later, the more weight
  fuseo1-average RUN/checkpoint-* OUT --dry-run
      say what is read and written, and what would stop it

docs/average.md has every schedule's weights.
"""
# Options of merges that have no meaning here.
_UNUSED = {
    "backend": "auto",
    "device": None,
    "cuda": False,
    "max_gpu_memory": None,
    "crop_embeddings": False,
    "survey_cache": None,
    "survey_topk": (),
    "random_seed": 0,
    "ignored": (),
}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        "fuseo1-average",
        "[OPTION ...] CHECKPOINT ... OUT",
        "Average the checkpoints of one training run. The output appears whole or not at all.",
        _EXAMPLES,
        intermixed=True,
    )
    parser.set_defaults(**_UNUSED)
    add = parser.add_argument
    add(
        "places",
        nargs="+",
        type=os.path.expanduser,
        metavar="CHECKPOINT ... OUT",
        help="folders of checkpoints, taken in natural order: checkpoint-500 before checkpoint-1000; the last one lends"
        " config.json and the tokenizer; then the directory of the averaged model",
    )
    add = parser.add_argument_group("the average").add_argument
    add("--schedule", choices=SCHEDULES, default="sma", help="how checkpoints weigh (default: sma)")
    add(
        "--decay",
        type=float,
        metavar="D",
        help="of ema, from 0 to 1: how much of the mean each checkpoint leaves",
    )
    add(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="of the output (default: the checkpoints')",
    )
    add = parser.add_argument_group("instead of an average").add_argument
    add(
        "--dry-run",
        action="store_true",
        help="only plan, from headers alone: sizes, memory, everything that would stop the average",
    )
    add("--version", action="version", version=f"fuseo1-kernels {__version__}")
    add_limits(parser.add_argument_group("threads and memory").add_argument)
    add_output(parser)
    add_of_models(parser.add_argument_group("the checkpoints"))
    add_printed(parser)
    return parser


def main(
    argv: list[str] | None = None,
    *,
    tuning: Tuning = DEFAULT_TUNING,
    interruption: Interruption | None = None,
) -> int:
    """Run the command; return the exit code, as merge.main does."""
    if interruption is None:
        interruption = Interruption("fuseo1-average")
        return interruption.run(partial(main, argv, tuning=tuning, interruption=interruption))
    parser = make_parser()
    arguments = parser.parse_args(argv)
    *arguments.checkpoints, arguments.out = arguments.places
    if not arguments.checkpoints:
        parser.error("give the folders of checkpoints, and OUT after them")
    return merge.run(parser.prog, arguments, partial(_config, arguments), tuning, interruption)


def _config(arguments: argparse.Namespace) -> MergeConfig:
    """Return the config of the average. Raises ConfigError."""
    from ..config.load import parse_config

    checkpoints = sorted(arguments.checkpoints, key=natural_order)
    parameters = {"schedule": arguments.schedule, "decay": arguments.decay}
    config = {
        "models": [{"model": checkpoint} for checkpoint in checkpoints],
        "merge_method": AVERAGE.name,
        "base_model": checkpoints[-1],
        "parameters": {name: value for name, value in parameters.items() if value is not None},
        "dtype": arguments.dtype,
    }
    return parse_config(config, "fuseo1-average")


def natural_order(name: str) -> list[tuple[str, int, str, str]]:
    """A key that sorts names by the numbers in them: checkpoint-500 before checkpoint-1000."""
    parts = re.findall(r"([^0-9]*)(0*)([0-9]*)", name)
    return [(text, len(number), number, zeros + number) for text, zeros, number in parts]
