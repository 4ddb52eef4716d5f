"""The arguments of `python -m fuseo1_kernels.bench`."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import TypeVar

from ..backends.arrays import BY_NAME
from ..backends.registry import BACKENDS, GPU_BACKENDS
from ..version import __version__

_EXAMPLES = """examples:
  fuseo1-bench sce --set select_topk=1 --set select_topk=0.1 --out given,new
  fuseo1-bench ties dare_ties --shape 5120x5120,1024x1024 --dtype bfloat16,float32 --passes
  fuseo1-bench all --json now.json --compare before.json --fail-below 0.9

Parameters that are not set: weight 1, density 0.2, t 0.3, the others as the method has them. FUSEO1_ISA chooses the
CPU's instruction set, as for merges.
"""
_SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_BACKENDS = ("auto", *BACKENDS, *GPU_BACKENDS)
_OUTPUTS = ("given", "new")

_Item = TypeVar("_Item")


def _list_of(item: Callable[[str], _Item]) -> Callable[[str], list[_Item]]:
    """The type of an option that takes several of `item`, with commas between them."""
    return lambda text: list(dict.fromkeys(item(part.strip()) for part in text.split(",")))


def _one_of(noun: str, names: tuple[str, ...]) -> Callable[[str], str]:
    def chosen(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is no {noun}; use {', '.join(names)}")
        return text

    return chosen


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split("x")
    if not all(re.fullmatch(r"[0-9]{1,12}", size) and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape, such as 5120x5120 or 4096")
    return tuple(map(int, sizes))


def _dtype(text: str) -> str:
    return _one_of("dtype", tuple(BY_NAME))(_SHORT.get(text, text))


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _ratio(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, such as density=0.2")
    return key, value


def make_parser() -> argparse.ArgumentParser:
    """The command line; options that take several values measure every combination."""
    parser = argparse.ArgumentParser(
        prog="fuseo1-bench",
        description="Time merges of one tensor in memory, beside a memcpy of the same tensors in the same run.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("methods", nargs="*", metavar="METHOD", help="merge methods, or all (default: sce)")
    add(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        help="a parameter of the methods that have it; repeat the key for several values; KEY=A,B,C: a value per model",
    )
    add(
        "--shape",
        type=_list_of(_shape),
        default=[(5120, 5120)],
        metavar="RxC[,...]",
        help="of the tensor (default 5120x5120)",
    )
    add(
        "--dtype",
        type=_list_of(_dtype),
        default=["bfloat16"],
        metavar="DTYPE[,...]",
        help="of inputs and output: bfloat16 (default), float16, float32, or bf16, fp16, fp32",
    )
    add(
        "--targets",
        type=_list_of(_count),
        default=[],
        metavar="N[,...]",
        help="models beside the base, or in all where the method has no base (default 3, or what the method takes)",
    )
    add(
        "--backend",
        type=_list_of(_one_of("backend", _BACKENDS)),
        default=["auto"],
        metavar="NAME[,...]",
        help=f"{', '.join(_BACKENDS)} (default auto, the fastest on the CPU); cuda and triton are timed on a GPU, by"
        " CUDA events, which has not been run yet",
    )
    add(
        "--threads",
        "-j",
        type=_list_of(_count),
        default=[None],
        metavar="N[,...]",
        help="of merges and of memcpy (default: all cores)",
    )
    add(
        "--data",
        action="append",
        metavar="DATA",
        help="gauss[:RMS] (default, RMS 0.001): Gaussian task vectors; coarse:SHARE: so small that rounding to the"
        " dtype leaves that share of the elements as they are in the base; BASE.safetensors,TUNED.safetensors,...: the"
        " tensors that these files share, one after the other; repeat it for several",
    )
    add(
        "--out",
        type=_list_of(_one_of("output", _OUTPUTS)),
        default=["given"],
        metavar="given[,new]",
        help="whether merges write to an output that is given (default), make a new one, or both",
    )
    add("--passes", action="store_true", help="also time every survey and the fuse by themselves")
    add("--rounds", type=_count, default=5, metavar="N", help="4 runs of every call (default 5)")
    add("--json", metavar="FILE", help="write the results there; -: to standard output")
    add("--compare", metavar="OLD.json", help="print the times beside those of an earlier --json")
    add(
        "--fail-below",
        type=_ratio,
        metavar="RATIO",
        help="with --compare: exit with 1 if an old time by its new time is below RATIO",
    )
    add("--version", action="version", version=f"fuseo1-kernels {__version__}")
    return parser
