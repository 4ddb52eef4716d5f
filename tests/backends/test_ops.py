"""survey and fuse: every backend, instruction set and thread count gives the reference's bits."""

from __future__ import annotations

import itertools
import mmap
from dataclasses import replace
from functools import cache

import pytest
import torch

from fuseo1_kernels import fuse, survey
from fuseo1_kernels.backends.contract import FuseParams
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import SceResult
from fuseo1_kernels.errors import MergeError
from fuseo1_kernels.in_memory.ops import as_arrays
from support.fuse_cases import MIXED
from support.hard_scores import (
    Pattern,
    denormal,
    denormal_scores,
    few_values,
    params_for,
    pattern,
    pattern_survey,
)
from support.tensors import (
    BF16,
    DTYPES,
    FP32,
    SHAPE_IDS,
    UGLY_SHAPES,
    assert_same_bits,
    denormals_flushed,
    learned,
    siblings,
)

TOPKS = (0.0, 0.1, 0.5, 1.0)


@cache
def surveyed(shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], topk: float) -> SceResult:
    base, *targets = siblings(shape, 3, dtypes)
    return survey(base, targets, select_topk=topk, backend="reference")


@cache
def fused(
    shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], masked: bool, out: torch.dtype
) -> torch.Tensor:
    base, *targets = siblings(shape, 3, dtypes)
    params = params_for(surveyed(shape, dtypes, 0.5), masked)
    return fuse(base, targets, params, out_dtype=out, backend="reference")


@pytest.mark.parametrize("shape", UGLY_SHAPES, ids=SHAPE_IDS)
def test_every_dtype_and_shape(cpu: str, shape: tuple[int, ...]) -> None:
    for dtypes in (*((d,) for d in DTYPES), MIXED):
        base, *targets = siblings(shape, 3, dtypes)
        for topk in TOPKS:
            result = survey(base, targets, select_topk=topk, backend=cpu)
            assert learned(result) == learned(surveyed(shape, dtypes, topk)), (dtypes, topk)
        for masked, out in itertools.product((False, True), DTYPES):
            params = params_for(surveyed(shape, dtypes, 0.5), masked)
            merged = fuse(base, targets, params, out_dtype=out, backend=cpu)
            assert_same_bits(merged, fused(shape, dtypes, masked, out), (dtypes, masked))


@pytest.mark.parametrize("targets", [*range(1, 17), 64])
def test_one_to_sixtyfour_targets(cpu: str, targets: int) -> None:
    for dtypes in (BF16, MIXED):
        base, *others = siblings(1000, targets, dtypes)
        for topk in (0.3, 1.0):
            expected = survey(base, others, select_topk=topk, backend="reference")
            result = survey(base, others, select_topk=topk, backend=cpu)
            assert learned(result) == learned(expected)
            for masked in (False, True):
                params = params_for(expected, masked)
                merged = fuse(base, others, params, backend=cpu)
                assert_same_bits(merged, fuse(base, others, params, backend="reference"))


def test_sixtyfive_targets_are_refused(backend: str) -> None:
    base, *targets = siblings(8, 65)
    with pytest.raises(MergeError, match="1 to 64 targets are supported, not 65"):
        survey(base, targets, backend=backend)
    with pytest.raises(MergeError, match="1 to 64 targets are supported, not 65"):
        fuse(base, targets, FuseParams((1.0,) * 65), backend=backend)


# --- threads, chunks, the caller's floating-point state ---


def test_elements_at_odd_addresses(cpu: str) -> None:
    tensors = siblings(3001, 3, MIXED)
    expected_survey = survey(tensors[0], tensors[1:], select_topk=0.5, backend="reference")
    params = params_for(expected_survey, masked=True)
    expected = fuse(tensors[0], tensors[1:], params, backend="reference")

    def misplaced(t: torch.Tensor) -> torch.Tensor:
        store = torch.zeros(t.numel() * t.element_size() + 8, dtype=torch.uint8)
        store[3 : 3 + t.numel() * t.element_size()] = t.view(torch.uint8)
        return store

    stores = [misplaced(t) for t in [*tensors, torch.empty_like(expected)]]
    owners = zip(as_arrays([*tensors, expected]), stores, strict=True)
    *inputs, out = [replace(a, address=store.data_ptr() + 3) for a, store in owners]
    engine = load_backend(cpu)
    assert learned(engine.survey(inputs, 0.5, 2)) == learned(expected_survey)
    engine.fuse(inputs, params, out, 0, 2)
    written = stores[-1][3 : 3 + expected.numel() * 2].clone().view(expected.dtype)
    assert_same_bits(written, expected)
    assert not stores[-1][:3].any() and not stores[-1][-5:].any()


@cache
def sum_of_two(numel: int) -> torch.Tensor:
    base, *targets = siblings(numel, 2)
    return fuse(base, targets, FuseParams((1.0, 1.0)), backend="reference")


@pytest.mark.parametrize("numel", [3001, 4_200_001], ids=["cached", "streamed"])
def test_nothing_is_written_beyond_the_output(cpu: str, numel: int) -> None:
    tensors = siblings(numel, 2)
    room = torch.full((numel + 64,), 7.0, dtype=BF16)
    for shift in (0, 1, 31):
        room.fill_(7.0)
        out = room[shift + 1 : shift + 1 + numel]
        fuse(tensors[0], tensors[1:], FuseParams((1.0, 1.0)), out=out, backend=cpu)
        assert (room[: shift + 1] == 7.0).all() and (room[shift + 1 + numel :] == 7.0).all()
    assert_same_bits(out, sum_of_two(numel))


@pytest.mark.parametrize("make", [denormal, denormal_scores, few_values], ids=lambda m: m.__name__)
def test_a_caller_that_flushes_denormals_gets_the_same_bits(cpu: str, make: Pattern) -> None:
    base, *targets = pattern(make)
    expected = pattern_survey(make, 0.35)
    params = params_for(expected, masked=True)
    merged = fuse(base, targets, params, backend="reference")
    with denormals_flushed():
        result = survey(base, targets, select_topk=0.35, backend=cpu)
        flushed = fuse(base, targets, params, backend=cpu)
        still_flushed = torch.tensor(2.0**-127) * 0.5
        assert still_flushed.item() == 0.0, "the caller's state was changed"
    assert learned(result) == learned(expected)
    assert_same_bits(flushed, merged)


def test_denormal_weights_survive_a_caller_that_flushes_denormals(cpu: str) -> None:
    base = torch.zeros(300)
    targets = [torch.full((300,), 3.0), torch.zeros(300)]
    params = FuseParams((2.0**-140, 1.0))
    expected = fuse(base, targets, params, backend="reference")
    with denormals_flushed():
        merged = fuse(base, targets, params, backend=cpu)
    assert_same_bits(merged, expected)


@pytest.mark.parametrize("default", [torch.float64, BF16])
def test_torchs_default_dtype_changes_no_bit(backend: str, default: torch.dtype) -> None:
    base, *targets = siblings(1000)
    result = surveyed((1000,), (BF16,), 0.5)
    torch.set_default_dtype(default)
    try:
        again = survey(base, targets, select_topk=0.5, backend=backend)
        merged = fuse(base, targets, params_for(result, False), out_dtype=FP32, backend=backend)
    finally:
        torch.set_default_dtype(FP32)
    assert learned(again) == learned(result)
    assert_same_bits(merged, fused((1000,), (BF16,), False, FP32))


# --- NaN, infinity, signed zero ---


def test_nonfinite_elements_are_counted_by_model(backend: str) -> None:
    base, *targets = siblings(1000, 3, FP32)
    base[0] = torch.nan
    targets[0][1:3] = torch.inf
    targets[2][2:7] = -torch.inf  # one of them beside an infinity of target 1
    base[10], targets[1][10] = -3e38, 3e38
    for topk in TOPKS:
        result = survey(base, targets, select_topk=topk, backend=backend)
        assert result.nonfinite == (1, 2, 0, 5, 1)


def test_nonfinite_elements_take_no_part(backend: str) -> None:
    base, *targets = siblings(1000, 3, FP32)
    mended = [t.clone() for t in targets]
    targets[1][17] = torch.nan
    for t in mended:
        t[17] = base[17]
    for topk in TOPKS:
        result = survey(base, targets, select_topk=topk, backend=backend)
        assert result.energy == survey(base, mended, select_topk=topk, backend=backend).energy
        assert result.nonfinite == (0, 0, 1, 0, 0)


# --- more than 2^31 elements ---


@pytest.mark.slow
def test_beyond_two_to_the_31_elements() -> None:
    numel = (1 << 31) + 70_001
    tail = (1 << 31) - 4096  # a multiple of 256
    # Pages of a private mapping that are only read take no memory; torch.zeros writes them all.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    mapped = [mmap.mmap(-1, 2 * numel, flags) for _ in range(3)]
    tensors = [torch.frombuffer(m, dtype=BF16) for m in mapped]
    parts = [t[tail:] for t in tensors]
    for part, values in zip(parts, siblings(numel - tail, 2), strict=True):
        part.copy_(values)
    small = survey(parts[0], parts[1:], select_topk=0.3, backend="reference")
    result = survey(tensors[0], tensors[1:], select_topk=0.3, backend="cpu")
    assert (result.nonzero, result.selected, result.threshold) == (
        small.nonzero,
        small.selected,
        small.threshold,
    )
    assert result.energy == small.energy
    assert small.tie_limit != numel - tail - 1 and result.tie_limit == small.tie_limit + tail
    params = params_for(result, masked=True)
    merged = fuse(tensors[0], tensors[1:], params, backend="cpu")
    local = replace(params, tie_limit=small.tie_limit)
    assert_same_bits(merged[tail:], fuse(parts[0], parts[1:], local, backend="reference"))
    assert not any(part.view(torch.int64).any() for part in merged[:tail].split(1 << 26))
