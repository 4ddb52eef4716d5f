"""fuse beyond SCE: elections, selections, divisors and scales, beside an emulation in numpy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fuseo1_kernels.backends import _cpu
from fuseo1_kernels.backends.arrays import Buffer
from fuseo1_kernels.backends.contract import (
    Band,
    Draw,
    Elect,
    FuseParams,
)
from fuseo1_kernels.backends.cpu import CpuBackend
from fuseo1_kernels.in_memory.ops import as_array
from support.file_ranges import stored
from support.fuse_cases import (
    ELECTS,
    MIXED,
    MODES,
    WEIGHTS,
    bit_masks,
    fused,
    selections,
    tensors_of,
    weights_of,
)
from support.oracles import fuse as emulation
from support.pairwise import pairwise
from support.survey_cases import SIZES
from support.tensors import (
    BACKENDS,
    BF16,
    CPUS,
    DTYPES,
    FP16,
    assert_same_bits,
)

# --- the numbers that selections are drawn by ---


def drawn(key: int, limit: int, offset: int, numel: int) -> torch.Tensor:
    """Return a mask of the elements of a chunk that the kernels draw."""
    base, target = torch.zeros(numel, dtype=BF16), torch.ones(numel, dtype=BF16)
    params = FuseParams((1.0,), elect="none", divisor=1.0, selects=(Draw(key, limit),))
    return fused("cpu", [base, target], params, BF16, offset).bool()


@pytest.mark.parametrize("key", [0, 1, 0xFFFFFFFF, 1 << 32, 0xDEADBEEF01234567, (1 << 64) - 1])
def test_draws_depend_on_key_and_flat_index_alone(cpu: str, key: int) -> None:
    for offset in (0, 256, 1 << 20, (1 << 34) - 512, 1 << 34, 0x7FFFFFFFFF00, (1 << 62) + 768):
        words = torch.from_numpy(emulation.words(key, offset, 1100).astype(np.int64))
        for limit in (0, 1, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xF0000000, 0xFFFFFFFF):
            assert torch.equal(drawn(key, limit, offset, 1100), words < limit)


# --- everything, beside the emulation ---


@cache
def expected(
    numel: int,
    dtypes: tuple[torch.dtype, ...],
    params: FuseParams,
    dtype: torch.dtype,
    offset: int = 0,
) -> torch.Tensor:
    return emulation.fuse(tensors_of(numel, 3, dtypes), params, dtype, offset)


@pairwise("backend, elect, numel", BACKENDS, ELECTS, SIZES, together=1, indirect=["backend"])
def test_every_election_selection_and_divisor(backend: str, elect: Elect, numel: int) -> None:
    pairs = list(itertools.product(selections(3).items(), MODES))
    some = pairs if numel < 4096 else pairs[:: len(MODES) + 1]  # each selection, each mode
    for ((name, selects), mode), dtypes in itertools.product(some, ((BF16,), MIXED)):
        params = FuseParams(WEIGHTS[:3], elect=elect, selects=selects, **mode)  # type: ignore[arg-type]
        for dtype in DTYPES:
            merged = fused(backend, tensors_of(numel, 3, dtypes), params, dtype)
            assert_same_bits(merged, expected(numel, dtypes, params, dtype), (dtypes, name, mode))


@pairwise("cpu, elect, targets", CPUS, ELECTS, (0, 1, 2, 3, 4, 5, 17), indirect=["cpu"])
def test_any_number_of_targets(cpu: str, elect: Elect, targets: int) -> None:
    tensors = tensors_of(1300, targets, (BF16, FP16))
    weights = weights_of(targets)
    plain = FuseParams(weights, elect=elect)
    for selects, out in itertools.product(selections(targets).values(), DTYPES):
        for params in (
            replace(plain, selects=selects),
            replace(plain, selects=selects, divisor=2.0, scale=-0.5, base_scale=1.5),
            replace(
                plain, selects=selects, shares=weights[::-1], masked=True, threshold=0x35000000
            ),
        ):
            assert_same_bits(fused(cpu, tensors, params, out), emulation.fuse(tensors, params, out))


# --- chunks, threads, files ---


@pytest.mark.parametrize("elect", ELECTS)
@pytest.mark.parametrize("name", ["in turn", "all"])
def test_chunks_and_threads_change_no_bit(backend: str, elect: Elect, name: str) -> None:
    """Far into a tensor; of what is selected, and of what is masked, as SCE does."""
    numel, first = 70_001, 1 << 34
    tensors = tensors_of(numel, 3, MIXED)
    here = tuple(
        replace(s, keep=replace(s.keep, tie_limit=s.keep.tie_limit + first))
        if isinstance(s, Band)
        else s
        for s in selections(3)[name]
    )
    # A score that 159 elements share.
    masked: dict[str, Any] = {
        "masked": name == "all",
        "threshold": 0x356E9C00,
        "tie_limit": first + 30_000,
    }
    params = FuseParams(WEIGHTS[:3], elect=elect, selects=here, **masked)
    whole = expected(numel, MIXED, params, BF16, first)
    for threads in (1, 2, 3):
        assert_same_bits(fused(backend, tensors, params, BF16, first, threads), whole)
    for size in (4352, 65_536) if backend == "reference" else (256, 4352, 65_536):
        assert_same_bits(fused(backend, tensors, params, BF16, first, chunk=size), whole)


def native(selects: Sequence[_cpu.Select], elect: int = _cpu.ELECT_WEIGHTED) -> _cpu.FuseParams:
    return _cpu.FuseParams(
        weights=WEIGHTS[: len(selects)], shares=(), alone=(), elect=elect, divisor=0.0, floor_divisor=0.0, scale=1.0,
        base_scale=1.0, selects=selects, masked=False, threshold=0, tie_limit=-1,
    )  # fmt: skip


@pytest.mark.parametrize("numel", SIZES)
def test_bits_select(cpu: str, numel: int) -> None:
    """They are told from the chunk's first element, wherever in the tensor that is."""
    tensors = tensors_of(numel, 3, MIXED)
    masks, words = bit_masks(numel)
    params = native([_cpu.Select.bits(w.ctypes.data) for w in words])
    by_bits = emulation.fuse(tensors, FuseParams(WEIGHTS[:3], elect="weighted"), BF16, 0, masks)
    places = [(a.address, a.dtype.abi) for a in map(as_array, tensors)]
    for offset, threads in ((0, 1), (1 << 20, 2)):
        out = torch.empty(numel, dtype=BF16)
        _cpu.fuse(places, params, offset, numel, out.data_ptr(), 0, threads)
        assert_same_bits(out, by_bits)


@pytest.mark.parametrize("offset", [0, 512])
@pytest.mark.parametrize("numel", SIZES)
def test_files_are_merged_in_pieces(cpu: str, numel: int, offset: int, tmp_path: Path) -> None:
    """A chunk of files of `offset` elements more: bits are told from its first element, pieces of it too."""
    whole, scratch = tensors_of(offset + numel, 3, MIXED), Buffer(64 << 10)
    tensors = [t[offset:] for t in whole]
    out = torch.empty(numel, dtype=BF16)
    into, engine = as_array(out), CpuBackend()
    with stored(tmp_path, whole) as places:
        for selects in selections(3).values():
            params = FuseParams(WEIGHTS[:3], elect="weighted", selects=selects, base_scale=0.5)
            engine.fuse_files(places, params, into, offset, 2, scratch)
            assert_same_bits(out, emulation.fuse(tensors, params, BF16, offset))
        alone = FuseParams((), base_scale=0.5)
        engine.fuse_files(places[:1], alone, into, offset, 1, scratch)
        assert_same_bits(out, emulation.fuse(tensors[:1], alone, BF16))
        masks, words = bit_masks(numel)
        bits = native([_cpu.Select.bits(w.ctypes.data) for w in words])
        ranges = [(p.fd, p.dtype.abi, p.offset) for p in places]
        room = (scratch.address, scratch.nbytes)
        _cpu.fuse_files(ranges, bits, offset, numel, room, out.data_ptr(), 0, 2)
        by_bits = emulation.fuse(tensors, FuseParams(WEIGHTS[:3], elect="weighted"), BF16, 0, masks)
        assert_same_bits(out, by_bits)
