"""A survey of norms keeps its draws for fuse where memory allows: both use the same elements, drawn once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels.backends.arrays import Array, Buffer
from fuseo1_kernels.backends.contract import (
    NONE,
    Band,
    Clamp,
    Draw,
    FuseParams,
    Gram,
    Kept,
    Magnitudes,
    Norms,
    Ranked,
    Request,
    Select,
    kept_bytes,
    step_of,
)
from fuseo1_kernels.backends.reference.select import selected
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import NormsResult, expect
from fuseo1_kernels.in_memory.merge import merge_tensors
from fuseo1_kernels.in_memory.ops import as_array, as_arrays
from fuseo1_kernels.in_memory.survey_cache import ResidentSurveys
from support.file_ranges import stored
from support.fuse_cases import fused
from support.survey_cases import stream
from support.tensors import BF16, assert_same_bits

SIZES = (1, 4, 255, 256, 257, 511, 8192, 70_001)


def made(numel: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(numel)
    return [torch.randn(numel, generator=g).to(BF16) for _ in range(5)]


def selects(numel: int) -> tuple[Select, ...]:
    """Two that are kept among others; rows as long as the tensor."""
    return Draw(7, 1 << 31), Band(keep=NONE), None, Draw(8, 1 << 28)


def by_rank(numel: int) -> tuple[Select, ...]:
    return Ranked(7, 0.3, 0.4, numel), Clamp(0.5), Draw(9, 3 << 30), Ranked(8, 0.1, 0.1, numel)


def told(kept: Kept, numel: int) -> torch.Tensor:
    """Its bits, as a mask."""
    raw = torch.frombuffer(
        bytearray(ctypes.string_at(kept.address, -(-numel // 8))), dtype=torch.uint8
    )
    return (raw[:, None] >> torch.arange(8) & 1).bool().flatten()[:numel]


def surveyed(backend: str, inputs: list[Array], request: Any, *rest: Any, **more: Any) -> Any:
    return load_backend(backend).survey(inputs, request, *rest, **more)


@pytest.mark.parametrize("numel", SIZES)
@pytest.mark.parametrize("made_selects", [selects, by_rank])
def test_the_same_elements(
    cpu: str, numel: int, made_selects: Callable[[int], tuple[Select, ...]]
) -> None:
    chosen = made_selects(numel)
    inputs = as_arrays(tensors := made(numel))
    found = surveyed(cpu, inputs, Norms(chosen), 2)
    assert found == surveyed("reference", inputs, Norms(chosen), 2)
    for i, (select, kept) in enumerate(zip(chosen, found.kept, strict=True)):
        assert (kept is not None) == isinstance(select, Draw | Ranked)
        if kept is not None:
            d = tensors[i + 1].float() - tensors[0].float()
            assert torch.equal(told(kept, numel) & (d != 0), selected(select, d, 0) & (d != 0))
    params = FuseParams((0.3, 0.4, 0.5, 0.6), elect="weighted", selects=chosen)
    right = fused("reference", tensors, params, BF16)
    kept_too = replace(params, kept=found.kept)
    for chunk in (numel, 256 * 3):
        if chunk == numel or made_selects is selects:  # rows lie in one chunk
            assert_same_bits(fused(cpu, tensors, kept_too, BF16, chunk=chunk), right)
    # Others have no use for it, and draw.
    assert_same_bits(fused("reference", tensors, kept_too, BF16), right)


def test_it_is_what_fuse_goes_by(cpu: str) -> None:
    """With other bits there, other elements are merged."""
    inputs = as_arrays(tensors := made(1000)[:2])
    found = surveyed(cpu, inputs, Norms((Draw(1, 1 << 31),)), 1)
    [kept] = found.kept
    assert kept is not None
    ctypes.memset(kept.address, 0, 125)
    params = FuseParams((1.0,), elect="none", divisor=1.0, selects=(Draw(1, 1 << 31),))
    by_kept = fused(cpu, tensors, replace(params, kept=found.kept), BF16)
    assert_same_bits(by_kept, tensors[0])
    assert not torch.equal(fused(cpu, tensors, params, BF16), by_kept)


@pytest.mark.parametrize("numel", [256, 257, 70_001])
def test_as_far_as_memory_goes(cpu: str, numel: int) -> None:
    asked, each = Norms(selects(numel)), -(-numel // 256) * 32
    assert kept_bytes(asked, numel) == 2 * each
    inputs, engine = as_arrays(tensors := made(numel)), load_backend(cpu)
    for room, count in ((0, 0), (each - 1, 0), (each, 1), (2 * each - 1, 1), (2 * each, 2)):
        lent = Buffer(room)
        lent.view[:] = b"\xff" * len(lent.view)
        surveyor = engine.surveyor(4, numel, asked, 2, 4 << 20, lent)
        found = expect(NormsResult, stream(surveyor, tensors, numel, sampled=False))
        there = [k is not None for k in found.kept]
        assert there == ([True, False, False, count > 1] if count else [])
        assert found == surveyed(cpu, inputs, asked, 1, max_bytes=0)
        for kept, select in zip(found.kept, asked.selects, strict=False):
            if kept is not None:
                assert torch.equal(told(kept, numel), selected(select, torch.ones(numel), 0))


@pytest.mark.parametrize("row", [100, 256, 5120])
def test_what_is_not_kept_is_decided_beside_what_is(cpu: str, row: int, tmp_path: Path) -> None:
    """Several units of work; of two targets by rank and one that is drawn only the first is kept."""
    numel = row * max(25_600 // row, 24)
    chosen = (Ranked(7, 0.3, 0.4, row), Ranked(8, 0.1, 0.5, row), Draw(9, 1 << 31))
    tensors, engine = made(numel)[:4], load_backend(cpu)
    lent = Buffer(kept_bytes(Norms(chosen[:1]), numel))
    surveyor = engine.surveyor(3, numel, Norms(chosen), 2, 4 << 20, lent)
    kept = expect(NormsResult, stream(surveyor, tensors, numel, sampled=False)).kept
    assert [k is not None for k in kept] == [True, False, False]
    params = FuseParams((0.3, 0.4, 0.5), elect="weighted", selects=chosen)
    right = fused("reference", tensors, params, BF16)
    params = replace(params, kept=kept)
    step = step_of(chosen)
    for chunk in (numel, step * 3):
        assert_same_bits(fused(cpu, tensors, params, BF16, chunk=chunk), right)
    with stored(tmp_path, tensors) as files:
        out, scratch = torch.empty_like(right), Buffer(4 * (step * 2 + 64))
        engine.fuse_files(files, params, as_array(out), 0, 2, scratch)
        assert_same_bits(out, right)


def test_surveys_keep_within_their_memory(cpu: str) -> None:
    inputs, asked = as_arrays(made(1000)), Norms(selects(1000))
    needed = kept_bytes(asked, 1000)
    assert surveyed(cpu, inputs, asked, 1, 2 * needed - 1).kept == ()
    assert sum(k is not None for k in surveyed(cpu, inputs, asked, 1, 2 * needed).kept) == 2


@pytest.mark.parametrize("asked", [Gram(), Magnitudes(((5,),)), Norms((None,)), 0.5])
def test_nothing_random_nothing_kept(cpu: str, asked: Request) -> None:
    found = surveyed(cpu, as_arrays(made(300)[:2]), asked, 1)
    assert getattr(found, "kept", ()) == ()  # of NormsResult alone
    assert kept_bytes(asked, 300) == 0


def test_kept_surveys_hold_no_memory(cpu: str) -> None:
    """The merge that follows draws anew, and comes to the same."""
    tensors, surveys = made(5000)[:4], ResidentSurveys()
    call: dict[str, Any] = {
        "base_index": 0,
        "parameters": {"weight": 0.5, "density": 0.3},
        "backend": cpu,
    }
    first, second = (merge_tensors(tensors, "dare_ties", surveys=surveys, **call) for _ in range(2))
    assert len(surveys) == 1
    assert all(expect(NormsResult, survey).kept == () for survey in surveys._surveys.values())
    assert_same_bits(first, second)
