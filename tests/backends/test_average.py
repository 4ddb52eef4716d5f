"""average: every element is the exact weighted mean, rounded once, however inputs are divided among calls."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import fsum
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuseo1_kernels.backends.arrays import Buffer
from fuseo1_kernels.backends.contract import MAX_AVERAGED, AverageParams
from fuseo1_kernels.backends.interface import Backend, FileRange, InputUnreadable
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.errors import BackendError
from fuseo1_kernels.in_memory.ops import as_array, average_on_device
from fuseo1_kernels.methods.average import SCHEDULES, schedule_weights
from fuseo1_kernels.methods.rule import Average
from support.tensors import (
    BACKENDS,
    BF16,
    DTYPES,
    FP16,
    FP32,
    QUIET_NAN,
    UGLY_SHAPES,
    assert_same_bits,
    bits,
    instruction_set,
    require_isa,
    siblings,
)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    name, _, isa = request.param.partition("-")
    if not isa:
        yield load_backend(name)
        return
    require_isa(isa)
    with instruction_set(isa):
        yield load_backend(name)


def averaged(
    backend: Backend,
    tensors: Sequence[torch.Tensor],
    rule: Average,
    dtype: torch.dtype,
    *,
    at_once: int = MAX_AVERAGED,
    threads: int = 1,
) -> torch.Tensor:
    out = torch.full(tensors[0].shape, 7.0, dtype=dtype)
    sums = Buffer(8 * out.numel())
    inputs = [as_array(t) for t in tensors]
    bad = 0
    for part, params in rule.steps(at_once):
        assert bad == 0
        bad = backend.average(inputs[part], params, sums, as_array(out), threads)
    assert bad == int((~out.isfinite()).sum())
    return out


def is_nearest(out: float, value: Fraction, dtype: torch.dtype, slack: Fraction) -> bool:
    """Whether no other number of `dtype` is nearer to `value`, by more than `slack`, and ties go to even."""
    here = torch.tensor(out, dtype=dtype)
    if here.isinf():
        limit = Fraction(torch.finfo(dtype).max) * (1 + Fraction(torch.finfo(dtype).eps) / 4)
        return abs(value) >= limit - slack and (value > 0) == (out > 0)
    away = value - Fraction(out)
    towards = torch.tensor(torch.inf if away > 0 else -torch.inf, dtype=dtype)
    there = torch.nextafter(here, towards)
    if not there.isfinite():
        return abs(away) <= Fraction(torch.finfo(dtype).max) * Fraction(torch.finfo(dtype).eps) / 4
    half = abs(Fraction(there.item()) - Fraction(out)) / 2
    if abs(away) == half and not slack:
        return int(bits(here)) % 2 == 0
    return abs(away) <= half + slack


def check(
    out: torch.Tensor, tensors: Sequence[torch.Tensor], rule: Average, exact: bool = False
) -> None:
    """Compare every element with the mean in rational numbers; `exact`: fp64 holds every sum."""
    columns = zip(*(t.double().flatten().tolist() for t in tensors), strict=True)
    weights, divisor = [Fraction(w) for w in rule.weights], Fraction(rule.divisor)
    for got, column in zip(out.flatten().tolist(), columns, strict=True):
        terms = [w * Fraction(x) / divisor for w, x in zip(weights, column, strict=True)]
        slack = 0 if exact else (len(terms) + 1) * sum(map(abs, terms)) / 2**52
        assert is_nearest(got, sum(terms, Fraction()), out.dtype, Fraction(slack)), (got, column)


# --- the value -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("schedule", ["sma", "wma"])
def test_whole_weights_are_exactly_rounded(
    backend: Backend, schedule: str, dtype: torch.dtype
) -> None:
    """Of 16-bit numbers: fp64 holds the sums, so that each mean is the nearest number, and ties go to even."""
    for models in (1, 2, 3, 32, 70):
        weights = schedule_weights(schedule, None, models)
        rule = Average(weights, fsum(weights))
        kinds = (BF16, FP16) if models % 2 else (BF16,)
        tensors = siblings(300, models - 1, kinds, seed=models)
        check(averaged(backend, tensors, rule, dtype), tensors, rule, exact=True)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**32 - 1),
    weights=st.lists(
        st.floats(-4.0, 4.0) | st.sampled_from([0.0, 1.0, 0.3]), min_size=1, max_size=9
    ),
    normalize=st.booleans(),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3),
    out=st.sampled_from(DTYPES),
    scale=st.sampled_from([1.0, 1e-30, 1e30, 2e4]),
    at_once=st.integers(1, 9),
)
def test_any_weights_and_dtypes(
    backend: Backend,
    seed: int,
    weights: list[float],
    normalize: bool,
    dtypes: list[torch.dtype],
    out: torch.dtype,
    scale: float,
    at_once: int,
) -> None:
    total = fsum(weights)
    rule = Average(tuple(weights), total if normalize and abs(total) > 1e-3 else 1.0)
    g = torch.Generator().manual_seed(seed)
    tensors = [
        (torch.randn(70, generator=g) * scale).to(dtypes[i % len(dtypes)])
        for i in range(len(weights))
    ]
    tensors = [t.nan_to_num(posinf=1.0, neginf=-1.0) for t in tensors]
    merged = averaged(backend, tensors, rule, out, at_once=at_once)
    check(merged, tensors, rule)
    assert_same_bits(merged, averaged(load_backend("reference"), tensors, rule, out))


def test_signs_of_zero_and_what_is_not_finite(backend: Backend) -> None:
    rows = [
        (-0.0, -0.0, -0.0),
        (-0.0, 0.0, 0.0),
        (1.0, -1.0, 0.0),
        (torch.inf, 1.0, torch.nan),
        (torch.inf, -torch.inf, torch.nan),
        (torch.nan, 0.0, torch.nan),
        (6e4, 7.2e4, torch.inf),  # beyond fp16
    ]
    *tensors, expected = (torch.tensor(column, dtype=FP32) for column in zip(*rows, strict=True))
    expected = expected.to(FP16)
    expected.view(torch.int16)[expected.isnan()] = QUIET_NAN[FP16]
    for weights in ((1.0, 1.0), (0.3, 0.3)):
        rule = Average(weights, fsum(weights))
        assert_same_bits(averaged(backend, tensors, rule, FP16), expected)


# --- the same bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", UGLY_SHAPES, ids=str)
def test_any_division_among_calls_and_threads(backend: Backend, shape: tuple[int, ...]) -> None:
    tensors = siblings(shape, 4, (BF16, BF16, FP32, FP16))
    for schedule, decay in (("1-sqrt", None), ("sma", None), ("ema", 0.7)):
        weights = schedule_weights(schedule, decay, 5)
        rule = Average(weights, fsum(weights))
        expected = averaged(load_backend("reference"), tensors, rule, BF16)
        for at_once, threads in ((5, 1), (2, 2), (1, 3)):
            merged = averaged(backend, tensors, rule, BF16, at_once=at_once, threads=threads)
            assert_same_bits(merged, expected, (at_once, threads))


def test_files(backend: Backend, tmp_path: Path) -> None:
    """By pieces of many sizes, from any block on; a file that ends too early is named by its number."""
    tensors = siblings(70_001, 6, (BF16, FP32))
    weights = schedule_weights("ema", 0.9, 7)
    rule = Average(weights, fsum(weights))
    expected = averaged(load_backend("reference"), tensors, rule, FP16)
    opened = []
    for number, tensor in enumerate(tensors):
        file = tmp_path / str(number)
        file.write_bytes(b"x" * number + tensor.view(torch.uint8).numpy().tobytes())
        opened.append(os.open(file, os.O_RDONLY))
    files = [
        FileRange(fd, number, as_array(tensor).dtype)
        for number, (fd, tensor) in enumerate(zip(opened, tensors, strict=True))
    ]
    for room, at_once, threads, offset in ((1 << 20, 7, 1, 0), (9000, 3, 2, 0), (9000, 2, 1, 512)):
        out = torch.empty(70_001 - offset, dtype=FP16)
        sums, scratch = Buffer(8 * out.numel()), Buffer(room)
        for part, params in rule.steps(at_once):
            backend.average_files(
                files[part], params, sums, as_array(out), offset, threads, scratch
            )
        assert_same_bits(out, expected[offset:], (room, at_once, threads, offset))
    os.truncate(tmp_path / "4", 70_000)
    [(_, params)] = rule.steps()
    with pytest.raises(InputUnreadable) as caught:
        backend.average_files(files, params, Buffer(0), as_array(out), 0, 1, Buffer(1 << 20))
    assert (caught.value.input, caught.value.number) == (4, 0)
    for fd in opened:
        os.close(fd)


# --- schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_schedules(n: int) -> None:
    """By their meaning: recursions and what is left of each update between two checkpoints."""
    decay = 0.8
    shares = {s: schedule_weights(s, decay if s == "ema" else None, n) for s in SCHEDULES}
    normal = {s: [w / fsum(weights) for w in weights] for s, weights in shares.items()}
    assert normal["sma"] == [1 / n] * n
    assert normal["wma"] == pytest.approx([2 * k / (n * (n + 1)) for k in range(1, n + 1)])
    mean = [1.0] + [0.0] * (n - 1)
    for k in range(1, n):
        mean = [decay * m for m in mean]
        mean[k] += 1 - decay
    assert normal["ema"] == pytest.approx(mean) and fsum(shares["ema"]) == pytest.approx(1)
    left = [
        1 - (k / n) ** 0.5 for k in range(1, n + 1)
    ]  # of the update from checkpoint k to the next
    assert [fsum(normal["1-sqrt"][k:]) for k in range(1, n + 1)] == pytest.approx(left, abs=1e-15)


# --- arguments -----------------------------------------------------------------------------------


def test_arguments_outside_the_contract() -> None:
    tensors = [torch.ones(5)] * (MAX_AVERAGED + 1)
    inputs, out = [as_array(t) for t in tensors], as_array(torch.empty(5))
    backend = load_backend("cpu")
    for params, these, room, error in (
        (AverageParams((1.0,) * 66, 66.0), inputs, 40, BackendError),
        (AverageParams((1.0,), 1.0), inputs[:2], 40, ValueError),
        (AverageParams((1.0,), 0.0), inputs[:1], 40, ValueError),
        (AverageParams((1.0,), 1.0), [as_array(torch.ones(4))], 40, BackendError),
        (AverageParams((1.0,), 1.0, last=False), inputs[:1], 39, BackendError),
    ):
        with pytest.raises(error):
            backend.average(these, params, Buffer(room), out, 1)


def test_by_torch_as_on_a_gpu() -> None:
    tensors = siblings((3, 90), 69, (BF16, FP32))
    weights = schedule_weights("1-sqrt", None, 70)
    rule = Average(weights, fsum(weights))
    out = torch.empty(3, 90, dtype=FP16)
    assert average_on_device(tensors, rule, out) == 0
    assert_same_bits(out, averaged(load_backend("cpu"), tensors, rule, FP16))
