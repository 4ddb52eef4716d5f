"""Shared by all benchmarks: options, medians, Markdown tables, and files in bench/results/."""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from machine import describe_line

from fuseo1_kernels.bench.data import Data
from fuseo1_kernels.bench.report import table as table
from fuseo1_kernels.errors import ConfigError

RESULTS = Path(__file__).resolve().parent / "results"
#: Where benchmarks put what they need for a while: on the disk that the repository is on.
WORK = Path(__file__).resolve().parent.parent / ".work"

#: What SCE is measured with: everything selected, and less.
SELECT_TOPK = (1.0, 0.5, 0.1)

#: What tensors hold, unless --data says something else: Gaussian task vectors, and those of ever gentler fine-tunes.
COARSE = ("coarse:0.36", "coarse:0.78", "coarse:0.9", "coarse:0.99")

_PEER = "mergekit is not installed here: pip install mergekit==0.1.5, or pass --no-peer"

median = statistics.median


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    made.add_argument("--no-peer", action="store_true", help="leave mergekit out")
    made.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help=f"where to write NAME.json and NAME.md (default {RESULTS}; nowhere with --quick)",
    )
    return made


def add_data(made: argparse.ArgumentParser, usual: Sequence[str]) -> None:
    """Add --data, which is repeated for several; `usual` if it is not given."""
    made.add_argument(
        "--data",
        action="append",
        metavar="DATA",
        help="gauss[:RMS], coarse:SHARE or safetensors files, base first, as fuseo1-bench takes them"
        f" (default {' '.join(usual)}); repeat it for several",
    )


def data_of(options: argparse.Namespace, usual: Sequence[str]) -> list[str]:
    """Return what --data asks for, each as Case has it, or end the program saying what is wrong with it."""
    try:
        return [str(Data.parse(text)) for text in options.data or usual]
    except ConfigError as error:
        raise SystemExit(str(error)) from error


def peer_merge_tensors() -> Callable[..., Any]:
    """Return mergekit's merge_tensors, or end the program saying how to go on without it."""
    try:
        api = importlib.import_module("mergekit.merge_methods.api")
    except ImportError as error:
        raise SystemExit(f"{_PEER} ({error})") from error
    merge_tensors: Callable[..., Any] = api.merge_tensors
    return merge_tensors


def chosen(results: Path | None, quick: bool) -> Path | None:
    """Return where results go, by the options; None: nowhere."""
    return results or (None if quick else RESULTS)


def write(folder: Path, name: str, content: Any, text: str | None = None) -> None:
    """Write `content` to NAME.json in `folder`, which is made, and the Markdown `text` to NAME.md.

    What was there is replaced at once: whoever is ended on the way leaves the file before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"json": json.dumps(content, indent=1) + "\n", "md": text}
    for suffix, said in texts.items():
        if said is not None:
            new = folder / f".{name}.{suffix}"
            new.write_text(said, encoding="utf-8")
            new.replace(folder / f"{name}.{suffix}")


def publish(
    options: argparse.Namespace,
    described: dict[str, Any],
    name: str,
    title: str,
    sections: Sequence[str],
    figures: Any,
) -> None:
    """Print the Markdown `sections`; where `options` say so, write them and `figures` as JSON.

    `described` is what machine.describe() found before the first measurement.
    """
    text = "\n\n".join([f"# {title}", *sections, describe_line(described)]) + "\n"
    print(text)
    folder = chosen(options.results, options.quick)
    if folder is not None:
        write(folder, name, {"machine": described, "figures": figures}, text)
