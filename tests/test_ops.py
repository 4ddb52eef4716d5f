"""survey and fuse: every backend, instruction set and thread count gives the reference's bits."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensors import (
    BF16,
    DTYPES,
    FP16,
    FP32,
    ISAS,
    QUIET_NAN,
    UGLY_SHAPES,
    assert_same_bits,
    bits,
    denormals_flushed,
    instruction_set,
    learned,
    siblings,
)

from fuseo1_kernels import _cpu, fuse, survey
from fuseo1_kernels.backends import NOTHING, FuseParams, SurveyResult, load_backend
from fuseo1_kernels.errors import MergeError
from fuseo1_kernels.ops import as_arrays

MIXED = (BF16, FP32, FP16)
TOPKS = (0.0, 0.1, 0.5, 1.0)
SHAPE_IDS = ["x".join(map(str, s)) or "0d" for s in UGLY_SHAPES]


def params_for(result: SurveyResult, masked: bool) -> FuseParams:
    """Weights that are no round numbers, and what the survey selected."""
    weights = tuple(
        torch.tensor([0.3 / (i + 1) for i in range(len(result.energy))], dtype=FP32).tolist()
    )
    floor = float(torch.tensor(1e-6, dtype=FP32)) if masked else 0.0
    return FuseParams(weights, floor, masked, result.threshold, result.tie_limit)


@cache
def surveyed(shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], topk: float) -> SurveyResult:
    base, *targets = siblings(shape, 3, dtypes)
    return survey(base, targets, select_topk=topk, backend="reference")


@cache
def fused(
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    topk: float,
    masked: bool,
    out: torch.dtype,
) -> torch.Tensor:
    base, *targets = siblings(shape, 3, dtypes)
    params = params_for(surveyed(shape, dtypes, topk), masked)
    return fuse(base, targets, params, out_dtype=out, backend="reference")


@pytest.mark.parametrize("shape", UGLY_SHAPES, ids=SHAPE_IDS)
def test_every_dtype_and_shape(backend: str, shape: tuple[int, ...]) -> None:
    for dtypes in (*((d,) for d in DTYPES), MIXED):
        base, *targets = siblings(shape, 3, dtypes)
        for topk in TOPKS:
            result = survey(base, targets, select_topk=topk, backend=backend)
            assert learned(result) == learned(surveyed(shape, dtypes, topk)), (dtypes, topk)
        for topk, masked, out in itertools.product((0.5,), (False, True), DTYPES):
            params = params_for(surveyed(shape, dtypes, topk), masked)
            merged = fuse(base, targets, params, out_dtype=out, backend=backend)
            assert_same_bits(merged, fused(shape, dtypes, topk, masked, out), (dtypes, masked))


@pytest.mark.parametrize("targets", [*range(1, 17), 64])
def test_one_to_sixtyfour_targets(backend: str, targets: int) -> None:
    for dtypes in (BF16, MIXED):
        base, *others = siblings(1000, targets, dtypes)
        for topk in (0.3, 1.0):
            expected = survey(base, others, select_topk=topk, backend="reference")
            result = survey(base, others, select_topk=topk, backend=backend)
            assert learned(result) == learned(expected)
            for masked in (False, True):
                params = params_for(expected, masked)
                merged = fuse(base, others, params, backend=backend)
                assert_same_bits(merged, fuse(base, others, params, backend="reference"))


def test_sixtyfive_targets_are_refused(backend: str) -> None:
    base, *targets = siblings(8, 65)
    with pytest.raises(MergeError, match="1 to 64 targets are supported, not 65"):
        survey(base, targets, backend=backend)
    with pytest.raises(MergeError, match="1 to 64 targets are supported, not 65"):
        fuse(base, targets, FuseParams((1.0,) * 65), backend=backend)


# --- scores that are hard to select among ---

N = 70_001  # more than a segment, sampled, odd


def constant(g: torch.Generator) -> list[torch.Tensor]:
    """Every score is equal."""
    return [torch.full((N,), x) for x in (0.0, 0.25, 0.5, 0.125)]


def two_values(g: torch.Generator) -> list[torch.Tensor]:
    high = torch.rand(N, generator=g) < 0.3
    return [torch.zeros(N), torch.where(high, 2.0, 1.0), torch.zeros(N), torch.zeros(N)]


def few_values(g: torch.Generator) -> list[torch.Tensor]:
    """Ties wherever the cut falls, zero scores among them."""
    return [torch.randint(-3, 4, (N,), generator=g).float() for _ in range(4)]


def denormal(g: torch.Generator) -> list[torch.Tensor]:
    """Task vectors of fp32's smallest numbers: their squares are 0, their differences must not be."""
    return [torch.randint(-9, 10, (N,), generator=g).float() * 2.0**-149 for _ in range(4)]


def denormal_scores(g: torch.Generator) -> list[torch.Tensor]:
    """Squares that are denormal fp32 numbers."""
    return [torch.randint(-99, 100, (N,), generator=g).float() * 2.0**-75 for _ in range(4)]


def outlier(g: torch.Generator) -> list[torch.Tensor]:
    """One square beyond fp32."""
    tensors = [torch.randn(N, generator=g) * 1e-2 for _ in range(4)]
    tensors[2][N // 2] = 1e30
    return tensors


def squares_overflow(g: torch.Generator) -> list[torch.Tensor]:
    """Scores that are infinite, and so equal, beside ordinary ones."""
    tensors = [torch.randn(N, generator=g) for _ in range(4)]
    for t in tensors[1:]:
        t[torch.rand(N, generator=g) < 0.2] *= 1e20
    return tensors


def opposites(g: torch.Generator) -> list[torch.Tensor]:
    """Sums that are finite, of numbers near fp32's end; the deviations from the mean overflow."""
    tensors = [torch.zeros(N), *(torch.randn(N, generator=g) for _ in range(3))]
    tensors[1][::7] = 3.4e38
    tensors[2][::7] = -3.4e38
    tensors[3][::14] = -3.4e38
    return tensors


def ascending(g: torch.Generator) -> list[torch.Tensor]:
    ramp = torch.arange(N).float() / N
    return [torch.zeros(N), ramp, -ramp, torch.zeros(N)]


def descending(g: torch.Generator) -> list[torch.Tensor]:
    return [t.flip(0) for t in ascending(g)]


def all_zero(g: torch.Generator) -> list[torch.Tensor]:
    return [torch.zeros(N) for _ in range(4)]


def identical(g: torch.Generator) -> list[torch.Tensor]:
    base, tuned = (torch.randn(N, generator=g).bfloat16().float() for _ in range(2))
    return [base, tuned, tuned.clone(), tuned.clone()]


def sparse(g: torch.Generator) -> list[torch.Tensor]:
    """A light fine-tune in bf16: most elements did not move."""
    base = torch.randn(N, generator=g)
    changed = [torch.where(torch.rand(N, generator=g) < 0.004, 1.0, 0.0) for _ in range(3)]
    return [base, *(base + c * torch.randn(N, generator=g) for c in changed)]


def one_nonzero(g: torch.Generator) -> list[torch.Tensor]:
    tensors = all_zero(g)
    tensors[1][N - 1] = 0.5
    return tensors


def nonfinite(g: torch.Generator) -> list[torch.Tensor]:
    """NaN and infinity in every model, two infinities that meet, and differences that overflow."""
    tensors = [torch.randn(N, generator=g) for _ in range(4)]
    for place, (t, value) in enumerate(
        itertools.product(tensors, (torch.nan, torch.inf, -torch.inf))
    ):
        t[place * 977 :: 9973] = value
    for t in tensors[:2]:
        t[5] = torch.inf
    tensors[0][6], tensors[1][6] = -3e38, 3e38
    return tensors


PATTERNS: tuple[Callable[[torch.Generator], list[torch.Tensor]], ...] = (
    constant,
    two_values,
    few_values,
    denormal,
    denormal_scores,
    outlier,
    squares_overflow,
    opposites,
    ascending,
    descending,
    all_zero,
    identical,
    sparse,
    one_nonzero,
    nonfinite,
)
SOME_TOPKS = (1e-5, 0.1, 0.35, 0.5, 0.999, 1.0)


@cache
def pattern(make: Callable[[torch.Generator], list[torch.Tensor]]) -> list[torch.Tensor]:
    return make(torch.Generator().manual_seed(0))


@cache
def pattern_survey(
    make: Callable[[torch.Generator], list[torch.Tensor]], topk: float
) -> SurveyResult:
    base, *targets = pattern(make)
    return survey(base, targets, select_topk=topk, backend="reference")


@pytest.mark.parametrize("topk", SOME_TOPKS)
@pytest.mark.parametrize("make", PATTERNS, ids=lambda make: make.__name__)
def test_hard_scores(
    backend: str, make: Callable[[torch.Generator], list[torch.Tensor]], topk: float
) -> None:
    base, *targets = pattern(make)
    expected = pattern_survey(make, topk)
    assert learned(survey(base, targets, select_topk=topk, backend=backend)) == learned(expected)
    for masked in (False, True):
        params = params_for(expected, masked)
        merged = fuse(base, targets, params, backend=backend)
        assert_same_bits(merged, fuse(base, targets, params, backend="reference"))


def test_a_cut_through_ties_takes_the_lowest_indices(backend: str) -> None:
    base, *targets = pattern(constant)
    result = survey(base, targets, select_topk=0.5, backend=backend)
    assert (result.nonzero, result.selected, result.tie_limit) == (N, N // 2, N // 2 - 1)
    params = replace(params_for(result, masked=True), floor_divisor=0.0)
    changed = fuse(base, targets, params, backend=backend) != base
    assert changed[: N // 2].all() and not changed[N // 2 :].any()


def test_selection_and_energies_of_small_integers_are_those_of_exact_arithmetic(
    backend: str,
) -> None:
    g = torch.Generator().manual_seed(3)
    tensors = [torch.randint(-40, 41, (20_000,), generator=g).float() for _ in range(5)]
    base, *targets = tensors
    d = [t - base for t in targets]  # four: the divisions by N are exact too
    for topk in (0.01, 0.1, 0.37, 0.5, 0.93, 1.0):
        mask = oracle.top_k(oracle.scores([x.double() for x in d]), topk)
        result = survey(base, targets, select_topk=topk, backend=backend)
        assert result.selected == int(mask.sum())
        assert list(result.energy) == oracle.energies([x.double() for x in d], mask)
        params = FuseParams((1.0,) * 4, 0.0, True, result.threshold, result.tie_limit)
        merged = fuse(base, targets, params, backend=backend)
        moved = torch.stack(d).ne(0).any(dim=0)
        elected = torch.stack(d).sum(dim=0)
        survivors = torch.stack([torch.where(elected >= 0, x > 0, x < 0) for x in d]).any(dim=0)
        assert torch.equal(merged != base, mask & moved & survivors)


def test_energies_are_within_two_to_the_minus_17_of_exact_ones(backend: str) -> None:
    base, *targets = siblings(50_000, 3, FP32, rms=1e-4)
    result = survey(base, targets, backend=backend)
    everything = torch.ones(50_000, dtype=torch.bool)
    exact = oracle.energies([(t - base).double() for t in targets], everything)
    for energy, true in zip(result.energy, exact, strict=True):
        assert abs(energy - true) <= 2.0**-17 * true


# --- threads, chunks, the caller's floating-point state ---


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(backend: str, threads: int) -> None:
    base, *targets = siblings(200_003, 3, MIXED)
    for topk in (0.2, 1.0):
        expected = surveyed((200_003,), MIXED, topk)
        result = survey(base, targets, select_topk=topk, backend=backend, threads=threads)
        assert learned(result) == learned(expected)
        for masked in (False, True):
            params = params_for(expected, masked)
            merged = fuse(base, targets, params, backend=backend, threads=threads, out_dtype=FP32)
            assert_same_bits(merged, fused((200_003,), MIXED, topk, masked, FP32))


@pytest.mark.parametrize("chunk", [256, 4096, 4352])
def test_fuse_in_chunks(backend: str, chunk: int) -> None:
    tensors = [t.bfloat16() for t in pattern(few_values)]
    result = survey(tensors[0], tensors[1:], select_topk=0.5, backend="reference")
    assert 0 < result.tie_limit < N - 1
    params = params_for(result, masked=True)
    expected = fuse(tensors[0], tensors[1:], params, backend="reference")
    out = torch.empty_like(expected)
    inputs, (_, whole) = as_arrays(tensors), as_arrays([tensors[0], out])
    for start in range(0, N, chunk):
        count = min(chunk, N - start)
        parts = [a.part(start, count) for a in inputs]
        load_backend(backend).fuse(parts, params, whole.part(start, count), start, 2)
    assert_same_bits(out, expected)


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


@pytest.mark.parametrize("numel", [3001, 6_000_001], ids=["cached", "streamed"])
def test_nothing_is_written_beyond_the_output(cpu: str, numel: int) -> None:
    tensors = siblings(numel, 2)
    room = torch.full((numel + 64,), 7.0, dtype=BF16)
    for shift in (0, 1, 31):
        room.fill_(7.0)
        out = room[shift + 1 : shift + 1 + numel]
        fuse(tensors[0], tensors[1:], FuseParams((1.0, 1.0)), out=out, backend=cpu)
        assert (room[: shift + 1] == 7.0).all() and (room[shift + 1 + numel :] == 7.0).all()
    expected = fuse(tensors[0], tensors[1:], FuseParams((1.0, 1.0)), backend="reference")
    assert_same_bits(out, expected)


@pytest.mark.parametrize("make", [denormal, denormal_scores, few_values], ids=lambda m: m.__name__)
def test_a_caller_that_flushes_denormals_gets_the_same_bits(
    cpu: str, make: Callable[[torch.Generator], list[torch.Tensor]]
) -> None:
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
    assert_same_bits(merged, fused((1000,), (BF16,), 0.5, False, FP32))


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


def test_every_nan_is_written_as_the_quiet_one(backend: str) -> None:
    payloads = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32).view(FP32)
    infinities = torch.tensor([torch.inf, -torch.inf])
    base = torch.zeros(20)
    target = torch.ones(20)
    target[3:7], target[9:11], base[13:15] = payloads, infinities, infinities
    expected_nan = torch.zeros(20, dtype=torch.bool)
    expected_nan[[3, 4, 5, 6, 9, 10, 13, 14]] = True
    for dtype in DTYPES:
        merged = fuse(base, [target], FuseParams((1.0,)), out_dtype=dtype, backend=backend)
        assert torch.equal(bits(merged) == QUIET_NAN[dtype], expected_nan)
        assert (merged[~expected_nan] == 1.0).all()


def test_the_bases_negative_zero_stays_where_nobody_survives(backend: str) -> None:
    for dtype in DTYPES:
        base = torch.full((300,), -0.0, dtype=dtype)
        others = [base.clone(), torch.zeros(300, dtype=dtype)]
        for params in (
            FuseParams((1.0, 1.0)),
            FuseParams((1.0, 1.0), float(torch.tensor(1e-6)), True, NOTHING, -1),
        ):
            assert_same_bits(fuse(base, others, params, backend=backend), base)


# --- inputs and outputs ---


def test_inputs_need_not_be_contiguous_and_stay_untouched(backend: str) -> None:
    base, *targets = siblings((120, 66), 3, MIXED)
    awkward = [
        base.t().contiguous().t(),
        targets[0].repeat(1, 2)[:, ::1][:, :66],
        targets[1].clone(),
    ]
    awkward.append(torch.stack([targets[2], targets[2]], dim=-1)[..., 0])
    assert sum(t.is_contiguous() for t in awkward) == 1
    before = [t.clone() for t in awkward]
    result = survey(awkward[0], awkward[1:], select_topk=0.5, backend=backend)
    assert learned(result) == learned(surveyed((120, 66), MIXED, 0.5))
    params = params_for(result, masked=True)
    merged = fuse(awkward[0], awkward[1:], params, backend=backend)
    assert_same_bits(merged, fused((120, 66), MIXED, 0.5, True, BF16))
    for t, b in zip(awkward, before, strict=True):
        assert_same_bits(t, b)


def test_a_transposed_output_is_written_in_place(backend: str) -> None:
    base, *targets = siblings((33, 65))
    params = FuseParams((1.0, 0.5, 0.25))
    out = torch.full((65, 33), 9.0, dtype=FP32).t()
    assert fuse(base, targets, params, out=out, backend=backend) is out
    assert_same_bits(out, fuse(base, targets, params, out_dtype=FP32, backend="reference"))


def test_every_second_element_of_a_buffer_as_output(backend: str) -> None:
    base, *targets = siblings(1000)
    buffer = torch.full((2000,), 9.0, dtype=BF16)
    fuse(base, targets, FuseParams((1.0, 1.0, 1.0)), out=buffer[::2], backend=backend)
    expected = fuse(base, targets, FuseParams((1.0, 1.0, 1.0)), backend="reference")
    assert_same_bits(buffer[::2], expected)
    assert (buffer[1::2] == 9.0).all()


def test_parameters_and_autograd_leaves_as_inputs(backend: str) -> None:
    base, *targets = [torch.nn.Parameter(t) for t in siblings(100, 2, FP32)]
    merged = fuse(base, targets, FuseParams((1.0, 1.0)), backend=backend)
    assert not merged.requires_grad and merged.grad_fn is None


def _error(call: Callable[[], object]) -> str:
    with pytest.raises(MergeError) as caught:
        call()
    return str(caught.value)


def test_misuse_of_the_ops_is_explained(backend: str) -> None:
    base, *targets = siblings((4, 5), 2)
    equal = FuseParams((1.0, 1.0))

    def run(
        base: torch.Tensor = base, targets: Sequence[torch.Tensor] = targets, **kw: object
    ) -> str:
        return _error(lambda: fuse(base, targets, equal, backend=backend, **kw))  # type: ignore[arg-type]

    assert run(targets=[]) == "a merge needs a base and at least one target"
    assert "target 2 has shape (5, 4), the base (4, 5)" in run(targets=[targets[0], targets[1].t()])
    assert "the base is torch.float64; supported: bfloat16, float16, float32" in run(base.double())
    assert "target 1 is torch.int64" in run(targets=[t.long() for t in targets])
    assert "the base is on meta" in run(base.to("meta"))
    assert run(targets=targets[:1]) == "2 weights for 1 targets"
    assert "the output dtype is torch.float64" in run(out_dtype=torch.float64)
    assert run(out_dtype="bfloat16") == (
        "out_dtype must be a torch.dtype such as torch.bfloat16, not 'bfloat16'"
    )
    for out in (torch.empty(4, 5), torch.empty(5, 4, dtype=BF16), torch.empty(20, dtype=BF16)):
        assert "the result is torch.bfloat16 (4, 5) on cpu" in run(out=out, out_dtype=BF16)
    assert "requires grad" in run(out=torch.empty(4, 5, requires_grad=True))
    for topk in (1.5, -0.1, float("nan"), float("inf")):
        message = _error(lambda: survey(base, targets, select_topk=topk, backend=backend))  # noqa: B023
        assert message == f"select_topk: must be a number in [0, 1], not {topk!r}"


def test_an_output_that_shares_memory_with_an_input_is_refused(backend: str) -> None:
    base, *targets = siblings((16, 16), 2)
    store = torch.empty(600, dtype=BF16)
    overlapping = store[:256].view(16, 16)
    transposed = store[:256].view(16, 16).t()
    equal = FuseParams((1.0, 1.0))
    for inputs, out in (
        ([base, *targets], base),
        ([base, *targets], targets[1]),
        ([overlapping, *targets], store[100:356].view(16, 16)),
        ([overlapping, *targets], store.as_strided((16, 16), (1, 16), 255)),
        ([transposed, *targets], store[:256].view(16, 16)),
    ):
        message = _error(lambda: fuse(inputs[0], inputs[1:], equal, out=out, backend=backend))  # noqa: B023
        assert "out shares memory with an input" in message


def test_an_output_right_beside_an_input_is_accepted(backend: str) -> None:
    store = torch.zeros(200)
    expected = torch.ones(100)
    base, out = store[:100], store[100:]
    fuse(base, [torch.ones(100)], FuseParams((1.0,)), out=out, backend=backend)
    assert_same_bits(out, expected)


def test_an_output_whose_elements_share_memory_is_refused(backend: str) -> None:
    base, *targets = siblings((4, 5), 2)
    out = torch.empty(5, dtype=BF16).expand(4, 5)
    _error(lambda: fuse(base, targets, FuseParams((1.0, 1.0)), out=out, backend=backend))


def test_an_unknown_backend_is_named() -> None:
    base, *targets = siblings(4, 2)
    assert "no backend 'gpu'" in _error(lambda: survey(base, targets, backend="gpu"))


@pytest.mark.parametrize("threads", [-1, -100])
def test_a_negative_number_of_threads_is_refused(backend: str, threads: int) -> None:
    base, *targets = siblings(4, 2)
    _error(lambda: survey(base, targets, backend=backend, threads=threads))


# --- any bits at all ---

_WIDTH = {BF16: 16, FP16: 16, FP32: 32}
_EDGES = {
    BF16: [0, 0x8000, 1, 0x8001, 0x7F, 0x80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7F81, 0x7FC0, 0xFFFF],
    FP16: [0, 0x8000, 1, 0x8001, 0x3FF, 0x400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFFFF],
    FP32: [0, 1 << 31, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000,
           0x7F800001, 0x7FC00000, 0xFFFFFFFF, 0x5F7FFFFF, 0x5F800000, 0x33000000],
}  # fmt: skip


@st.composite
def any_tensors(draw: st.DrawFn) -> list[torch.Tensor]:
    """A base and up to five targets, each of any dtype, made of any bits."""
    numel = draw(st.integers(0, 40))
    near_base = draw(st.booleans())
    tensors: list[torch.Tensor] = []
    for _ in range(draw(st.integers(2, 6))):
        dtype = (
            draw(st.sampled_from(DTYPES))
            if not near_base
            else tensors[0].dtype
            if tensors
            else BF16
        )
        top = 1 << _WIDTH[dtype]
        element = st.one_of(st.integers(0, top - 1), st.sampled_from(_EDGES[dtype]))
        if near_base and tensors:
            moves = draw(st.lists(st.integers(-2, 2), min_size=numel, max_size=numel))
            first = bits(tensors[0]).tolist()
            values = [(f + m) % top for f, m in zip(first, moves, strict=True)]
        else:
            values = draw(st.lists(element, min_size=numel, max_size=numel))
        signed = [v - top if v >= top // 2 else v for v in values]
        kind = torch.int32 if dtype == FP32 else torch.int16
        tensors.append(torch.tensor(signed, dtype=kind).view(dtype))
    return tensors


@pytest.mark.parametrize("isa", ISAS)
@given(
    tensors=any_tensors(),
    topk=st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.0, 1.0)),
    weights=st.lists(st.floats(0.0, 1.0, width=32), min_size=5, max_size=5),
    out_dtype=st.sampled_from(DTYPES),
    masked=st.booleans(),
    floor=st.sampled_from([0.0, float(torch.tensor(1e-6, dtype=FP32))]),
)
def test_any_bits(
    isa: str,
    tensors: list[torch.Tensor],
    topk: float,
    weights: list[float],
    out_dtype: torch.dtype,
    masked: bool,
    floor: float,
) -> None:
    if isa not in _cpu.available_isas():
        pytest.skip(f"this machine or build has no {isa} kernels")
    base, *targets = tensors
    expected = survey(base, targets, select_topk=topk, backend="reference")
    params = FuseParams(
        tuple(weights[: len(targets)]), floor, masked, expected.threshold, expected.tie_limit
    )
    expected_out = fuse(base, targets, params, out_dtype=out_dtype, backend="reference")
    with instruction_set(isa):
        result = survey(base, targets, select_topk=topk, backend="cpu", threads=2)
        merged = fuse(base, targets, params, out_dtype=out_dtype, backend="cpu", threads=2)
    assert learned(result) == learned(expected)
    assert_same_bits(merged, expected_out)


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_every_16_bit_value_is_widened_and_rounded_back(backend: str, dtype: torch.dtype) -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    same = fuse(every, [every], FuseParams((1.0,)), backend=backend)
    finite = torch.isfinite(every)
    assert torch.equal(bits(same)[finite], bits(every)[finite])
    assert (bits(same)[~finite] == QUIET_NAN[dtype]).all()
    wide = fuse(every, [every], FuseParams((1.0,)), out_dtype=FP32, backend=backend)
    assert_same_bits(wide[finite], every.float()[finite])


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_rounding_at_and_beside_every_midpoint(backend: str, dtype: torch.dtype) -> None:
    high = int(bits(torch.tensor(torch.finfo(dtype).max, dtype=dtype)))
    lower = torch.arange(0, high, dtype=torch.int16).view(dtype).double()
    upper = torch.arange(1, high + 1, dtype=torch.int16).view(dtype).double()
    middle = ((lower + upper) / 2).float()
    assert torch.equal(middle.double(), (lower + upper) / 2)
    values = torch.cat([middle, (bits(middle) - 1).view(FP32), (bits(middle) + 1).view(FP32)])
    values = torch.cat([values, -values])
    merged = fuse(values, [values], FuseParams((1.0,)), out_dtype=dtype, backend=backend)
    assert_same_bits(merged, oracle.rounded(values.double(), dtype))


# --- more than 2^31 elements ---


@pytest.mark.large
def test_beyond_two_to_the_31_elements() -> None:
    numel = (1 << 31) + 70_001
    tail = (1 << 31) - 4096  # a multiple of 256
    # Pages of a fresh mapping that are only read take no memory; torch.zeros writes them all.
    tensors = [torch.frombuffer(mmap.mmap(-1, 2 * numel), dtype=BF16) for _ in range(3)]
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


# --- very many equal scores among the candidates ---


@pytest.mark.parametrize("topk", [0.05, 0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("levels", [1, 2, 40])
def test_more_ties_than_are_sorted(levels: int, topk: float) -> None:
    """More candidates of one score than are sorted: the cut is found by counting (candidates.cpp)."""
    g = torch.Generator().manual_seed(levels)
    steps = torch.randint(1, levels + 1, (400_003,), generator=g) * 2.0**-10
    base = torch.zeros_like(steps)
    targets = [steps, base, -steps]
    expected = survey(base, targets, select_topk=topk, backend="reference")
    for threads in (1, 3):
        found = survey(base, targets, select_topk=topk, backend="cpu", threads=threads)
        assert replace(found, passes=1) == expected
    assert found.passes == 1


@pytest.mark.parametrize("topk", [0.05, 0.1, 0.3, 0.5, 0.7])
def test_light_fine_tunes_in_bf16_tie_in_clusters(topk: float) -> None:
    base, *targets = siblings(1_000_001, 3, BF16, rms=1e-4)
    expected = survey(base, targets, select_topk=topk, backend="reference")
    found = survey(base, targets, select_topk=topk, backend="cpu")
    assert replace(found, passes=1) == expected
