"""Random selections: the words are Philox4x32-7's, and what is drawn is as random as the methods need.

The seeds are fixed, so that a test passes always or never. Bounds are of the normal approximation at SIGMAS standard
deviations, which chance alone exceeds once in 1.7 million comparisons; there are some thousands here.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch

from fuseo1_kernels.backends.contract import Draw, FuseParams, Norms
from fuseo1_kernels.backends.reference import philox as reference
from fuseo1_kernels.backends.reference.philox import philox
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.results import NormsResult, expect
from fuseo1_kernels.in_memory.ops import as_array, as_arrays
from support.fuse_cases import fused
from support.oracles import fuse as emulation
from support.tensors import BF16, FP32

SIGMAS = 5.0
N = 1 << 18
HALF = 1 << 31
KEY = 0x243F6A8885A308D3
#: Keys as a generator of keys might make them badly: counting, and one bit apart.
NEIGHBOURS = (KEY + 1, KEY + 2, *(KEY ^ (1 << bit) for bit in range(0, 64, 3)))
#: Its halves, the other way round.
SWAPPED = (KEY >> 32) | (KEY & 0xFFFFFFFF) << 32


@lru_cache(maxsize=256)
def words(key: int, first: int, count: int) -> torch.Tensor:
    """Those of the reference backend, made once; 2 MB each at most."""
    return reference.words(key, first, count)


def are_uniform(values: torch.Tensor, cells: int) -> bool:
    """Chi-square of equally likely cells: its mean is k - 1, its variance 2 (k - 1)."""
    expected, free = values.numel() / cells, cells - 1
    observed = torch.bincount(values, minlength=cells).double()
    statistic = float(((observed - expected) ** 2).sum()) / expected
    return abs(statistic - free) < SIGMAS * math.sqrt(2 * free)


def are_independent(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Masks of rate 1/2: of n products of +-1 the sum has variance n."""
    return abs(float((~(a ^ b)).sum() * 2 - a.numel())) < SIGMAS * math.sqrt(a.numel())


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
    """Those of seven rounds in the authors' kat_vectors (Random123), of the reference and of the tests' oracle."""
    numbers = [int(word, 16) for word in counter.split()]
    made = philox([torch.tensor(n) for n in numbers], key)
    assert [f"{int(word):08x}" for word in made] == expected.split()
    words = [np.array([n], dtype=np.uint64) for n in numbers]
    oracles = emulation.philox(words, [key % 2**32, key >> 32])
    assert [f"{int(word[0]):08x}" for word in oracles] == expected.split()


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
        if shift + bits <= 32:
            assert are_uniform((found >> shift) & ((1 << bits) - 1), 1 << bits)


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
    for key in (*NEIGHBOURS, SWAPPED):
        assert are_independent(mine, drawn(key)), hex(key)


def test_three_models_are_independent_together() -> None:
    """Pairs may be independent where a triple is not: all 8 cells of three models' masks are equally likely."""
    masks = [drawn(KEY + i).long() for i in range(3)]
    assert are_uniform(masks[0] + 2 * masks[1] + 4 * masks[2], 8)


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
    assert are_independent(mask[:-lag], mask[lag:])
    high = words(KEY, 0, N) >> 28
    assert are_uniform(16 * high[:-lag] + high[lag:], 256)


def test_the_four_words_of_a_counter_are_independent_together() -> None:
    by_counter = (words(KEY, 0, N) >> 30).view(-1, 4, 64).transpose(0, 1).reshape(4, -1)
    joined = torch.stack([by_counter[j] << 2 * j for j in range(4)]).sum(dim=0)
    assert are_uniform(joined, 256)


# --- what is merged ---


def test_fuse_takes_what_is_drawn(backend: str) -> None:
    tensors = [torch.full((70_001,), x) for x in (0.0, 1.0, 2.0)]
    selects = tuple(Draw(key, round(0.3 * 2**32)) for key in (KEY, KEY + 1))
    params = FuseParams((1.0, 1.0), elect="none", divisor=1.0, selects=selects)
    first, second = (drawn(s.key, s.limit, count=70_001) for s in selects)
    assert torch.equal(fused(backend, tensors, params, chunk=4352), first + 2.0 * second)


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
