"""The options of a merge, their defaults and checks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from ..errors import ConfigError, MergeError, OutputError
from ..methods.nonfinite import check_nonfinite
from ..methods.parameters import check_seed
from ..plan.models import AllowLinks
from .tuning import DEFAULT_TUNING, Tuning

DEFAULT_SHARD_SIZE = 5_000_000_000
DEFAULT_MAX_MEMORY = 2 << 30


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """The options of a merge. The config and the output directory are not among them.

    Attributes:
        backend: "auto", "cpu" or "reference"; on GPUs "auto", "cuda" or "triton". "auto" takes the first that runs.
        device: "cpu", "cuda", "cuda:1" or several GPUs, "cuda:0,cuda:1". None: the CPU, unless `backend` is for GPUs.
            Never changes a byte of the weights.
        threads: number of threads, 1 or more. None: one for each core that this process may use. Never changes a byte
            of the result.
        max_memory: the most bytes of host memory for headers, buffers and survey state, together. The page cache is not
            counted.
        max_gpu_memory: the most bytes of memory on each GPU. None: a quarter of its free memory. Tensors that need
            more are merged on the CPU.
        shard_size: the most bytes of tensor data in one output file. A larger tensor has a file of its own.
        overwrite: replace the model at the output directory once the new one is complete.
        crop_embeddings: cut embeddings of different vocabulary sizes to the rows that all models have.
        copy_tokenizer: copy tokenizer files to the output.
        allow_links: directories outside of the models to which links in them may lead.
        nonfinite: "error" refuses NaN and infinite elements; "propagate" makes them NaN.
        resume: continue an unfinished run of the same merge. False: start over.
        survey_cache: directory that keeps surveys for later merges of the same models. None: surveys are not kept.
        survey_topk: more values of select_topk, in [0, 1], to survey in the same read (sce). Needs `survey_cache`.
        random_seed: seed of random masks (DARE, DELLA). With the names of the tensor and the model it keys a mask.
        tuning: sizes of chunks, batches and copies.
    """

    backend: str = "auto"
    device: str | None = None
    threads: int | None = None
    max_memory: int = DEFAULT_MAX_MEMORY
    max_gpu_memory: int | None = None
    shard_size: int = DEFAULT_SHARD_SIZE
    overwrite: bool = False
    crop_embeddings: bool = False
    copy_tokenizer: bool = True
    allow_links: AllowLinks = ()
    nonfinite: str = "error"
    resume: bool = True
    survey_cache: str | os.PathLike[str] | None = None
    survey_topk: Sequence[float] = ()
    random_seed: int = 0
    tuning: Tuning = DEFAULT_TUNING

    def check_numbers(self) -> None:
        """Raise ConfigError for a size or seed of the wrong type or range."""
        check_sizes(max_memory=self.max_memory, shard_size=self.shard_size)
        check_seed(self.random_seed)

    def check_links(self, out_dir: str | os.PathLike[str] | None) -> None:
        """Raise ConfigError unless `allow_links` are directories, OutputError if `out_dir` contains one of them."""
        if isinstance(self.allow_links, (str, os.PathLike)):
            raise ConfigError(f"allow_links: must be a list: [{os.fspath(self.allow_links)!r}]")
        for directory in self.allow_links:
            if not os.path.isdir(directory):
                raise ConfigError(
                    f"allow_links: {os.fspath(directory)!r} is no directory; name one that links"
                    " lead to"
                )
            real = Path(os.path.realpath(directory))
            if out_dir is not None and real.is_relative_to(os.path.realpath(out_dir)):
                raise OutputError(
                    f"{out_dir}: contains {os.fspath(directory)}, where files of models may lie (allow_links);"
                    " choose another OUT"
                )

    def check_surveys(self, method: str) -> None:
        """Raise MergeError if `nonfinite` is unknown, or if `survey_topk` does not fit the method or `survey_cache`."""
        check_nonfinite(self.nonfinite)
        if self.survey_topk and method != "sce":
            raise MergeError(f"survey_topk: {method} has no select_topk; leave it out")
        if self.survey_topk and self.survey_cache is None:
            raise MergeError(
                "survey_topk needs a directory that keeps the surveys: give survey_cache"
            )
        if not all(0 <= topk <= 1 for topk in self.survey_topk):
            values = ", ".join(map(str, self.survey_topk))
            raise MergeError(f"survey_topk: must lie in [0, 1]: {values}")


def check_sizes(**sizes: object) -> None:
    """Raise ConfigError, naming the keyword, for a size in bytes that is not a positive integer."""
    for name, size in sizes.items():
        if not isinstance(size, Integral) or isinstance(size, bool):
            raise ConfigError(
                f"{name}: {size!r} is not a number of bytes; write for example 5 * 10**9 or 512 << 20"
            )
        if size < 1:
            raise ConfigError(f"{name}: {size}: a size must be positive")
