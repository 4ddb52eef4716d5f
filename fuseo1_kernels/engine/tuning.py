"""Sizes of chunks, batches and copies: they trade speed against memory and latency, and never change a byte."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """Sizes that the engine works by. The defaults were measured (docs/storage.md); tests pass small ones.

    Attributes:
        chunk: elements merged between two checks for a stop; a chunk is written in one call.
        batch: bytes of inputs; smaller tensors are handed to a worker together until they reach it.
        few: a tensor is scheduled first if a worker's share of all bytes holds fewer than this many of its size.
        read_ahead: bytes of inputs that wait in the page cache for a worker, at most, unless one unit has more.
        page_cache: bytes of the page cache that a merge may fill; None: half of the free memory.
        step: bytes that a reader brings into the page cache between two checks for a stop.
        direct_ahead: bytes of a tensor that the system is asked to read in the background, where no reader does.
        sample_runs: runs of a survey's sample, at most; each is a read of its own.
        slot: bytes copied to or from a GPU at once.
    """

    chunk: int = 1 << 20
    batch: int = 4 << 20
    few: int = 16
    read_ahead: int = 256 << 20
    page_cache: int | None = None
    step: int = 16 << 20
    direct_ahead: int = 64 << 20
    sample_runs: int = 2048
    slot: int = 8 << 20


DEFAULT_TUNING = Tuning()
