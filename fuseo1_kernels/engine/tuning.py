"""Sizes of chunks, batches and copies. They trade speed against memory and never change a byte of the result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """Sizes that the engine uses. The defaults were measured (docs/storage.md); tests pass small ones.

    Attributes:
        chunk: elements merged between two checks for a stop. A chunk is written in one call.
        batch: bytes of inputs. Small tensors are batched into units until they reach it.
        few: a tensor is scheduled first if a worker's share of all bytes is less than this many times its size.
        read_ahead: the most bytes of inputs that wait in the page cache for a worker, unless one unit has more.
        page_cache: bytes of the page cache that a merge may fill. None: half of the free memory.
        step: bytes that a reader reads into the page cache between two checks for a stop.
        direct_ahead: bytes that the system is asked to read ahead of a worker where no reader does.
        sample_runs: the most runs in a survey's sample. Each run is one read.
        slot: the most bytes of one copy to or from a GPU.
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
