"""Random selections: the words are Philox4x32-7's, and what is drawn is as random as the methods need.

The seeds are fixed, so that a test passes always or never. Bounds are of the normal approximation at SIGMAS standard
deviations, which chance alone exceeds once in 1.7 million comparisons; there are some thousands here.
"""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
import torch

from fuseo1_kernels.backends.contract import Clamp, Draw, FuseParams, Norms
from fuseo1_kernels.backends.reference import philox as reference
from fuseo1_kernels.backends.reference.philox import philox
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import NormsResult, expect
from fuseo1_kernels.in_memory.ops import as_array, as_arrays
from support.tensors import BF16, FP32

SIGMAS = 5.0
N = 1 << 18
HALF = 1 << 31
KEY = 0x243F6A8885A308D3
#: Keys as a generator of keys might make them badly: counting, and one bit apart.
NEIGHBOURS = (KEY + 1, KEY + 2, *(KEY ^ (1 << bit) for bit in range(0, 64, 3)))


@lru_cache(maxsize=256)
def words(key: int, first: int, count: int) -> torch.Tensor:
    """Those of the reference backend, made once; 2 MB each at most."""
    return reference.words(key, first, count)


def chi_square(observed: torch.Tensor, expected: float) -> tuple[float, float]:
    """The statistic of equally likely cells, and its bound: mean k - 1, variance 2 (k - 1)."""
    free = observed.numel() - 1
    statistic = float(((observed.double() - expected) ** 2).sum()) / expected
    return abs(statistic - free), SIGMAS * math.sqrt(2 * free)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """That of two masks of rate 1/2, in standard deviations: of n products of +-1 the sum has variance n."""
    return float((~(a ^ b)).sum() * 2 - a.numel()) / math.sqrt(a.numel())


def drawn(key: int, limit: int = HALF, first: int = 0, count: int = N) -> torch.Tensor:
    return words(key, first, count) < limit


# --- the words ---


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", 0, "5f6fb709 0d893f64 4f121f81 4f730a48"),
        ("ffffffff ffffffff ffffffff ffffffff", 2**64 - 1, "5207ddc2 45165e59 4d8ee751 8c52f662"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            0x299F31D0A4093822,
            "4dfccaba 190a87f0 c47362ba b6b5242a",
        ),
    ],
)
def test_known_answers(counter: str, key: int, expected: str) -> None:
    """Those of seven rounds in the authors' kat_vectors (Random123)."""
    made = philox([torch.tensor(int(word, 16)) for word in counter.split()], key)
    assert [f"{int(word):08x}" for word in made] == expected.split()


def test_which_word_is_whose() -> None:
    """Element 256 B + 64 j + c has word j of the counter 64 B + c, whose high half is the second word."""
    for block in (0, 1, 12345, (1 << 26) - 1, 1 << 26):
        row = words(KEY, 256 * block, 256)
        for c in (0, 1, 63):
            n = 64 * block + c
            counter = (n & 0xFFFFFFFF, n >> 32, 0, 0)
            made = philox([torch.tensor(word) for word in counter], KEY)
            assert [int(word) for word in made] == [int(row[64 * j + c]) for j in range(4)]


def test_words_depend_on_nothing_but_their_index() -> None:
    whole = words(KEY, 0, 5000)
    for first, count in ((0, 1), (256, 256), (255, 3), (1000, 4000), (4999, 1), (512, 0)):
        assert torch.equal(words(KEY, first, count), whole[first : first + count])


# --- rate ---


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.2, 0.5, 0.9, 0.999])
def test_the_rate_is_that_of_the_limit(rate: float) -> None:
    """Binomial: variance n p (1 - p). Of whole tensors, and of many short ones together."""
    limit = round(rate * 2**32)
    for key in (0, KEY, *NEIGHBOURS[:4]):
        count = int(drawn(key, limit).sum())
        assert abs(count - N * rate) < SIGMAS * math.sqrt(N * rate * (1 - rate)), (key, count)
    short = sum(int(drawn(key, limit, count=1000).sum()) for key in range(200))
    assert abs(short - 2e5 * rate) < SIGMAS * math.sqrt(2e5 * rate * (1 - rate))


def test_the_limits_ends() -> None:
    """Limit 0 draws nothing; the largest leaves out one word in 2^32."""
    assert not drawn(KEY, 0).any()
    assert drawn(KEY, 2**32 - 1).all()


def test_blocks_have_the_rates_spread() -> None:
    """The counts of blocks of 256 vary as binomial ones do: a generator of low discrepancy would vary less."""
    counts = drawn(KEY, HALF).view(-1, 256).sum(dim=1).double()
    statistic = float(((counts - 128) ** 2).sum()) / 64
    assert abs(statistic - counts.numel()) < SIGMAS * math.sqrt(2 * counts.numel())


# --- uniformity ---


@pytest.mark.parametrize("shift", range(0, 32, 4))
def test_the_words_are_uniform(shift: int) -> None:
    """Four bits after four, and each with the next four."""
    found = words(KEY, 0, N)
    for bits in (4, 8):
        cells = torch.bincount((found >> shift) & ((1 << bits) - 1), minlength=1 << bits)
        if shift + bits <= 32:
            statistic, bound = chi_square(cells, N / (1 << bits))
            assert statistic < bound


def test_the_words_fill_the_interval() -> None:
    """Kolmogorov and Smirnov: sqrt(n) times the largest deviation exceeds 2.8 once in 3 million."""
    ordered = torch.sort(words(KEY, 0, N)).values.double() / 2**32
    ranks = torch.arange(N).double() / N
    deviation = max(float((ordered - ranks).max()), float((ranks + 1 / N - ordered).max()))
    assert deviation * math.sqrt(N) < 2.8


# --- independence ---


def test_keys_are_independent() -> None:
    """Models and tensors have keys of their own; even keys next to each other draw what is unrelated."""
    mine = drawn(KEY)
    for key in NEIGHBOURS:
        assert abs(correlation(mine, drawn(key))) < SIGMAS, hex(key)


def test_low_and_high_half_of_a_key_both_tell() -> None:
    swapped = (KEY >> 32) | (KEY & 0xFFFFFFFF) << 32
    assert abs(correlation(drawn(KEY), drawn(swapped))) < SIGMAS


def test_three_models_are_independent_together() -> None:
    """Pairs may be independent where a triple is not: all 8 cells of three models' masks are equally likely."""
    masks = [drawn(KEY + i).long() for i in range(3)]
    cells = torch.bincount(masks[0] + 2 * masks[1] + 4 * masks[2], minlength=8)
    statistic, bound = chi_square(cells, N / 8)
    assert statistic < bound


@pytest.mark.parametrize("bit", [0, 1, 7, 16, 31])
def test_every_bit_of_two_keys_words_differs_as_often_as_not(bit: int) -> None:
    for key in NEIGHBOURS[::6]:
        changed = (words(KEY, 0, N) ^ words(key, 0, N)) >> bit & 1
        assert abs(float(changed.sum()) - N / 2) < SIGMAS * math.sqrt(N) / 2


# Neighbours, a counter's words, blocks, rows of matrices.
LAGS = (1, 2, 3, 4, 8, 16, 63, 64, 65, 128, 192, 255, 256, 257, 512, 1024, 4096, 5120, 65536)


@pytest.mark.parametrize("lag", LAGS)
def test_elements_are_independent(lag: int) -> None:
    mask = drawn(KEY)
    assert abs(correlation(mask[:-lag], mask[lag:])) < SIGMAS
    high = words(KEY, 0, N) >> 28
    cells = torch.bincount(16 * high[:-lag] + high[lag:], minlength=256)
    statistic, bound = chi_square(cells, (N - lag) / 256)
    assert statistic < bound


def test_the_four_words_of_a_counter_are_independent_together() -> None:
    by_counter = (words(KEY, 0, N) >> 30).view(-1, 4, 64).transpose(0, 1).reshape(4, -1)
    cells = torch.bincount(
        torch.stack([by_counter[j] << 2 * j for j in range(4)]).sum(dim=0), minlength=256
    )
    statistic, bound = chi_square(cells, N / 4 / 256)
    assert statistic < bound


# --- what is merged ---


def test_fuse_takes_what_is_drawn(backend: str) -> None:
    base, limit = torch.zeros(70_001), round(0.3 * 2**32)
    targets = [torch.ones(70_001), torch.full((70_001,), 2.0)]
    params = FuseParams(
        (1.0, 1.0), elect="none", divisor=1.0, selects=(Draw(KEY, limit), Draw(KEY + 1, limit))
    )
    out = torch.empty_like(base)
    inputs, result = as_arrays([base, *targets]), as_array(out)
    for start in range(0, base.numel(), 4352):
        count = min(4352, base.numel() - start)
        parts = [a.part(start, count) for a in inputs]
        load_backend(backend).fuse(parts, params, result.part(start, count), start, 2)
    first, second = (drawn(key, limit, count=70_001) for key in (KEY, KEY + 1))
    assert torch.equal(out, first + 2.0 * second)


def test_norms_are_of_what_is_drawn(backend: str) -> None:
    """Multiples of 2^-10 up to 1 are whole numbers of quanta: the sums are exact."""
    g = torch.Generator().manual_seed(1)
    d = torch.randint(-1024, 1025, (N,), generator=g) / 1024
    inputs = as_arrays([torch.zeros(N), d, d, d])
    asked = Norms((Draw(KEY, HALF), None, Clamp(0.25)))
    result = expect(NormsResult, load_backend(backend).survey(inputs, asked, 2))
    everything = float(d.abs().double().sum())
    some = float(d.abs().double()[drawn(KEY)].sum())
    assert result.norms == ((everything, some), (everything, everything), (everything, everything))


RATE = 0.2


def merged_draws(backend: str, d: torch.Tensor, keys: range, by_norms: bool) -> torch.Tensor:
    """The mean over many keys of what DARE adds: a drawn fifth of `d`, rescaled by 1 / RATE or by norms."""
    engine, limit = load_backend(backend), round(RATE * 2**32)
    inputs = as_arrays([torch.zeros_like(d), d])
    out, mean = torch.empty(d.numel(), dtype=FP32), torch.zeros(d.numel(), dtype=torch.float64)
    for key in keys:
        select, scale = Draw(key, limit), 1 / RATE
        if by_norms:
            found = expect(NormsResult, engine.survey(inputs, Norms((select,)), 2))
            [(everything, some)] = found.norms
            scale = everything / some
        params = FuseParams((1.0,), elect="none", divisor=1.0, scale=scale, selects=(select,))
        engine.fuse(inputs, params, as_array(out), 0, 2)
        mean += out.double() / len(keys)
    return mean


@pytest.mark.parametrize("by_norms", [False, True], ids=["by rate", "by norms"])
def test_rescaling_keeps_the_expectation(backend: str, by_norms: bool) -> None:
    """By element: the mean over K keys has variance d^2 (1 - p) / (p K); their squares sum to the number of elements.

    Dividing by the norms' quotient, not by p, changes the variance by a relative 1 / n and the mean by as little.
    """
    n, keys = 20_000, range(64)
    d = (torch.randn(n, generator=torch.Generator().manual_seed(2)) * 1e-3).to(BF16).float()
    d[d == 0] = 1e-3
    exact = d.double()
    mean = merged_draws(backend, d, keys, by_norms)
    variance = exact**2 * (1 - RATE) / (RATE * len(keys))
    standard = (mean - exact) / variance.sqrt()
    # A sum of 64 Bernoulli trials has kurtosis 3 + (1 - 6 p q) / (64 p q): the squares' variance is a little over 2.
    assert abs(float((standard**2).sum()) - n) < SIGMAS * math.sqrt(n * 2.01)
    assert abs(float((standard * exact.sign()).sum())) < SIGMAS * math.sqrt(n)
    assert abs(float(standard.sum())) < SIGMAS * math.sqrt(n)
