"""RANKED selections (DELLA's): what is drawn is what select.h says, on every backend, by whatever way it is decided."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fuseo1_kernels.backends import _cpu
from fuseo1_kernels.backends.arrays import Buffer
from fuseo1_kernels.backends.contract import Draw, Norms, Ranked, step_of
from fuseo1_kernels.backends.cpu import native_select
from fuseo1_kernels.backends.interface import Backend
from fuseo1_kernels.backends.reference.philox import words
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import NormsResult, expect
from fuseo1_kernels.errors import BackendError
from fuseo1_kernels.in_memory.ops import as_array, as_arrays
from support.file_ranges import stored
from support.fuse_cases import fused
from support.gpu.rows import RanksRefused
from support.oracles.fuse import words as emulated_words
from support.pairwise import pairwise
from support.ranked import (
    KEY,
    KINDS,
    denormals,
    differences,
    few_values,
    made,
    normal,
    not_finite,
    params_of,
    selects,
)
from support.survey_cases import stream_files
from support.tensors import BACKENDS, BF16, CPUS, FP16, FP32, assert_same_bits, denormals_flushed

ROWS = (1, 2, 3, 31, 255, 256, 257, 1000, 4097, 5120)


def expected(d: torch.Tensor, select: Ranked) -> torch.Tensor:
    """The mask in numpy, row by row, from the text of select.h alone."""
    x, n = np.abs(d.float().numpy()), select.row
    drawn = emulated_words(select.key, 0, x.size).reshape(-1, n)
    kept = np.zeros((x.size // n, n), dtype=bool)
    x = np.where(np.isnan(x), np.float32(np.inf), x).reshape(-1, n)
    for row in range(len(x)):
        # Ascending; of equals the last index comes first.
        order = np.lexsort((-np.arange(n), x[row]))
        for r, f in enumerate(order.tolist()):
            share = r / (n - 1) if n > 1 else 0.5
            kept[row, f] = drawn[row, f] < math.floor(2.0**32 * (select.low + share * select.span))
    return torch.from_numpy(kept.reshape(-1)) | ~torch.isfinite(d)


# --- which elements ---


@pairwise("backend, kind, row", BACKENDS, KINDS, (*ROWS[:-2], 2500), indirect=["backend"])
def test_what_is_selected_is_what_the_contract_says(
    backend: str, kind: Callable[[int, torch.Generator], torch.Tensor], row: int
) -> None:
    base, *targets = made(kind, row, max(1, min(200, 3000 // row)))
    for target, select in zip(targets, selects(row), strict=True):
        out = fused(backend, [base, target], params_of((select,)))
        kept = torch.where(expected(target, select), target, 0.0)
        kept = kept.masked_fill(~torch.isfinite(target), torch.nan)
        assert torch.equal(out.nan_to_num(7.0), kept.nan_to_num(7.0))


@pairwise("cpu, kind, row", CPUS, KINDS, (*ROWS, 70_000), indirect=["cpu"])
def test_all_kernels_select_what_the_reference_does(
    cpu: str, kind: Callable[[int, torch.Generator], torch.Tensor], row: int
) -> None:
    tensors, chosen = made(kind, row, max(2, 20_000 // row)), selects(row)
    reference = load_backend("reference")
    params = params_of(chosen)
    assert_same_bits(fused(cpu, tensors, params), fused("reference", tensors, params))
    # A target that is not finite is surveyed alone: this file does not test what others count beside it.
    targets = 1 if kind is not_finite else 2
    inputs, asked = as_arrays(tensors[: targets + 1]), Norms(chosen[:targets])
    assert load_backend(cpu).survey(inputs, asked, 2) == reference.survey(inputs, asked, 1)


@pytest.mark.parametrize("row", [256, 1000, 4097, 5120, 20_000])
@pytest.mark.parametrize("rounds", range(2))
def test_hard_rows(cpu: str, row: int, rounds: int) -> None:
    """Every row with values, ties and extent of its own; next to no chance, and next to all of it."""
    g = torch.Generator().manual_seed(rounds)
    rows = []
    for _ in range(max(3, 60_000 // row)):
        values = torch.randint(1, 2000, (1,), generator=g)
        x = torch.randn(int(values), generator=g) * 2.0 ** torch.randint(-20, 20, (1,), generator=g)
        x = x.to((FP32, BF16, FP16)[int(torch.randint(0, 3, (1,), generator=g))]).float()
        picked = x[torch.randint(0, int(values), (row,), generator=g)]
        rows.append(picked * (torch.rand(row, generator=g) < torch.rand(1, generator=g)))
    tensors = [torch.zeros(row * len(rows)), torch.cat(rows)]
    for low, span in ((0.4, 0.2), (1e-9, 0.999), (0.5, 0.0), (0.9999, 5e-5)):
        params = params_of((Ranked(KEY + rounds, low, span, row),))
        assert_same_bits(fused(cpu, tensors, params), fused("reference", tensors, params))


@pytest.mark.parametrize("row", [1, 3, 1000])
def test_inputs_of_any_dtype(cpu: str, row: int) -> None:
    g = torch.Generator().manual_seed(3)
    for dtypes in itertools.product((BF16, FP16, FP32), repeat=2):
        tensors = [torch.randn(row * 60, generator=g).to(dtype) for dtype in dtypes]
        params = params_of(selects(row)[:1])
        assert_same_bits(fused(cpu, tensors, params), fused("reference", tensors, params))


def test_no_elements(backend: str) -> None:
    empty = [torch.empty(0)] * 3
    assert_same_bits(fused(backend, empty, params_of(selects(5))), empty[0])
    found = load_backend(backend).survey(as_arrays(empty), Norms(selects(5)), 2)
    assert expect(NormsResult, found).norms == ((0.0, 0.0), (0.0, 0.0))


def test_the_callers_floating_point_state_does_not_matter(cpu: str) -> None:
    tensors, params = made(denormals, 1000, 20), params_of(selects(1000))
    right = fused(cpu, tensors, params)
    with denormals_flushed():
        assert_same_bits(fused(cpu, tensors, params), right)


# --- whatever the chunks ---


@pairwise("backend, row", BACKENDS, (*ROWS[:-2], 4128, 5120), together=1, indirect=["backend"])
def test_chunks_and_threads_change_nothing(backend: str, row: int) -> None:
    """And a row does not depend on the rows around it."""
    step = math.lcm(row, 256)
    rows = 5 * step // row + 1
    tensors, params = made(few_values, row, rows), params_of(selects(row))
    right = fused(backend, tensors, params)
    for chunk, threads in ((step, 1), (2 * step, 3), (4 * step, 2)):
        made_in = fused(backend, tensors, params, chunk=chunk, threads=threads)
        assert_same_bits(made_in, right)
    alone = [t[: row * (rows // 2)] for t in tensors]
    assert_same_bits(fused(backend, alone, params), right[: alone[0].numel()])


@pytest.mark.parametrize("row", [3, 257, 1000])
def test_norms_in_chunks(backend: str, row: int) -> None:
    step = math.lcm(row, 256)
    tensors = made(differences, row, 4 * step // row + 1)
    inputs, numel = as_arrays(tensors), tensors[0].numel()
    engine, asked = load_backend(backend), Norms(selects(row))
    right = load_backend("reference").survey(inputs, asked, 1)
    for order in ((0, 1), (1, 0)):
        surveyor = engine.surveyor(2, numel, asked, 3, 4 << 20)
        surveyor.sample([])
        parts = [(0, 2 * step), (2 * step, numel - 2 * step)]
        for start, count in (parts[i] for i in order):
            surveyor.update([x.part(start, count) for x in inputs], start)
        surveyor.end_pass()
        assert surveyor.result() == right


@pairwise(
    "backend, row, threads",
    BACKENDS,
    (1, 255, 1000, 4096, 5120),
    (1, 2),
    together=1,
    indirect=["backend"],
)
def test_files(backend: str, row: int, threads: int, tmp_path: Path) -> None:
    """With the least scratch, and with plenty."""
    step = math.lcm(row, 256)
    tensors = made(differences, row, 3 * step // row + 1)
    right, asked = fused("reference", tensors, params_of(selects(row))), Norms(selects(row))
    norms = load_backend("reference").survey(as_arrays(tensors), asked, 1)
    params, engine, least = params_of(selects(row)), load_backend(backend), 3 * (4 * step + 64)
    out = torch.empty_like(right)
    with stored(tmp_path, tensors) as files:
        for scratch in (Buffer(least), Buffer(8 << 20)):
            surveyor = engine.surveyor(2, right.numel(), asked, threads, 4 << 20)
            assert stream_files(surveyor, files, (0,), scratch) == norms
            engine.fuse_files(files, params, as_array(out.zero_()), 0, threads, scratch)
            assert_same_bits(out, right)
        if step > 256:
            with pytest.raises((ValueError, BackendError)):
                engine.fuse_files(files, params, as_array(out), 0, threads, Buffer(least - 4096))


def test_steps() -> None:
    assert step_of(()) == step_of((None, Draw(1, 2))) == 256
    assert step_of((Ranked(1, 0.4, 0.2, 5120), None)) == 5120
    assert step_of((None, Ranked(1, 0.4, 0.2, 1000))) == 32_000


# --- how often ---


@pytest.mark.parametrize(("low", "span"), [(0.4, 0.2), (0.1, 0.3), (0.01, 0.98)])
def test_the_rate_is_that_of_the_rank(backend: str, low: float, span: float) -> None:
    """Of 2000 rows, each element in a place by chance: the counts by rank are binomial."""
    rows, row = 2000, 64
    g = torch.Generator().manual_seed(5)
    ranks = torch.argsort(torch.rand(rows, row, generator=g), dim=1)
    d = (ranks + 1).float().view(-1)
    out = fused(backend, [torch.zeros_like(d), d], params_of((Ranked(KEY, low, span, row),)))
    counts = torch.bincount(ranks.view(-1)[out != 0], minlength=row).double()
    p = low + torch.arange(row).double() / (row - 1) * span
    deviations = (counts - rows * p) / (rows * p * (1 - p)).sqrt()
    assert float(deviations.abs().max()) < 5
    assert abs(float((deviations**2).sum()) - row) < 5 * math.sqrt(2 * row)


def test_equals_rank_by_their_index(backend: str) -> None:
    """The lowest index is the largest: in a row of equals the rate falls from the first element to the last."""
    rows, row = 4000, 32
    d = torch.ones(rows * row)
    out = fused(backend, [torch.zeros_like(d), d], params_of((Ranked(KEY, 0.1, 0.8, row),)))
    counts = (out != 0).view(rows, row).sum(dim=0).double()
    p = 0.9 - torch.arange(row).double() / (row - 1) * 0.8
    assert float(((counts - rows * p) / (rows * p * (1 - p)).sqrt()).abs().max()) < 5


def test_without_a_span_it_is_a_draw(backend: str) -> None:
    """The same words decide: at equal chances the masks are equal."""
    tensors = made(normal, 1000, 20)[:2]
    ranked = fused(backend, tensors, params_of((Ranked(KEY, 0.25, 0.0, 1000),)))
    assert_same_bits(ranked, fused(backend, tensors, params_of((Draw(KEY, 1 << 30),))))
    kept = words(KEY, 0, 20_000) < 1 << 30
    assert torch.equal(ranked != 0, kept & (tensors[1] != 0))


# --- what is refused ---


class TestRefused(RanksRefused):
    @pytest.fixture
    def gpu(self, cpu: str) -> Backend:
        return load_backend(cpu)

    def test_surveys_are_of_rows_that_agree_and_chunks_of_whole_ones(self, cpu: str) -> None:
        """In the native module, too, and as soon as the chunk comes."""
        chosen = (Ranked(1, 0.4, 0.2, 256), Ranked(1, 0.4, 0.2, 512))
        with pytest.raises(ValueError, match="outside the contract"):
            _cpu.Survey.norms(1536, [native_select(select) for select in chosen])
        surveyor = load_backend(cpu).surveyor(2, 1536, Norms(chosen[1:] * 2), 1, 4 << 20)
        with pytest.raises(ValueError, match="outside the contract"):
            surveyor.update(as_arrays([torch.zeros(768)] * 3), 0)
