"""mergekit-yaml's flags that have no meaning here: accepted, each with a note that says why."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

_ALWAYS = {
    "--allow-crimes": "models merge if their tensors fit; a difference of architecture is noted",
    "--async-write": "output is always written while the merge goes on",
    "--clone-tensors": "every tensor is written by itself",
    "--lazy-unpickle": "tensors are always read where they lie in the file, as far as they are needed",
    "--low-cpu-memory": "--max-memory and --max-gpu-memory are the limits",
    "--multi-gpu": "--device cuda:0,cuda:1 names several GPUs",
    "--no-safe-serialization": "the output is always safetensors",
    "--no-write-model-card": "the model card is always written",
    "--read-to-gpu": "merges on GPUs always read to the GPU",
    "--safe-serialization": "the output is always safetensors",
    "--trust-remote-code": "no code of a model is ever run",
    "--verbose": "progress and notes are printed unless --quiet is given",
    "--write-model-card": "the model card is always written",
}
_WITH_VALUE = {
    "--lora-merge-cache": "adapters are added while models are read; no merged copy is written",
    "--lora-merge-dtype": "adapters are added in fp64 and rounded once, to fp32",
    "--transformers-cache": "models are downloaded to the hub's cache, which HF_HUB_CACHE names",
    "--write-threads": "--threads is the number of threads",
}
# mergekit's defaults, spelt out.
_SILENT = (
    *("--no-allow-crimes", "--no-async-write", "--no-clone-tensors", "--no-lazy-unpickle"),
    *("--no-low-cpu-memory", "--no-multi-gpu", "--no-read-to-gpu", "--no-trust-remote-code"),
    *("--no-cuda", "--no-quiet", "--no-unsafe-truncate-embeddings"),
)


def add_mergekit_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags. They do not stand in the help; `ignored` in the parsed arguments has their notes."""
    parser.set_defaults(ignored=())
    for flag, reason in _ALWAYS.items():
        short = ("-v",) if flag == "--verbose" else ()
        parser.add_argument(flag, *short, nargs=0, action=_Ignore, const=reason)
    for flag, reason in _WITH_VALUE.items():
        parser.add_argument(flag, action=_Ignore, const=reason)
    parser.add_argument(*_SILENT, nargs=0, action=_Ignore)


class _Ignore(argparse.Action):
    """Adds a note on the flag to `ignored`; `const` is the reason, None where there is nothing to say."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, help=argparse.SUPPRESS, **options)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if self.const is not None:
            note = f"{option_string} has no meaning here: {self.const}"
            namespace.ignored = tuple(dict.fromkeys((*namespace.ignored, note)))
