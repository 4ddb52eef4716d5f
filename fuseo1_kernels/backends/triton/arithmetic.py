"""The arithmetic contract in Triton: the operations that kernels share, on a tile of elements.

A tile has ROWS blocks of 256 elements, one block per row: shape [ROWS, 256]. Task vectors, and everything computed
from them, are tuples of such tiles, one per target. Formulas: csrc/include/fuseo1/survey.h and fuse.h; every
operation rounds once (launches pass enable_fp_fusion=False).
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = tl.constexpr(256)
INF = tl.constexpr(0x7F800000)  # fp32 bits; those of NaN are larger
# Exponent fields below this one would make a block's scale 2^(149-E) a denormal or infinity.
LEAST_EXPONENT = tl.constexpr(22)
# x + 2^23 rounds x in [0, 2^23] to an integer, which is then the sum's low bits.
RINT_MAGIC = tl.constexpr(8388608.0)
RINT_MAGIC_BITS = tl.constexpr(0x4B000000)
MOST_SQUARABLE = tl.constexpr(float.fromhex("0x1.fffffep63"))
LARGEST = tl.constexpr(float.fromhex("0x1.fffffep127"))


@triton.jit
def float_of(bits):
    """int32 bits as fp32."""
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def bits_of(x):
    """fp32 as int32 bits, which have the same order for non-negative numbers."""
    return x.to(tl.int32, bitcast=True)


@triton.jit
def positions(ROWS: tl.constexpr):
    """[ROWS, 256] int32: each element's position in its tile."""
    return tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]


@triton.jit
def widen(x):
    """Loaded elements as fp32, exactly. bf16 is loaded as int16: it is the upper half of an fp32."""
    if x.dtype == tl.int16:
        wide = float_of(x.to(tl.int32) << 16)
    else:
        wide = x.to(tl.float32)
    return wide


@triton.jit
def load_wide(data, start, at, left, WHOLE: tl.constexpr):
    """Elements start + at of `data` as fp32; zeros where at >= left, unless the tile is WHOLE.

    Only unmasked loads are 16 bytes wide whatever the number of elements: masks are for tails.
    """
    if WHOLE:
        x = tl.load(data + start + at)
    else:
        x = tl.load(data + start + at, mask=at < left, other=0)
    return widen(x)


@triton.jit
def task_vectors(inputs, start, at, left, WHOLE: tl.constexpr, TARGETS: tl.constexpr):
    """(base, (d_1, ..., d_N)): d_i = x_i - b."""
    base = load_wide(inputs[0], start, at, left, WHOLE)
    d = ()
    for i in tl.static_range(TARGETS):
        d = d + (load_wide(inputs[i + 1], start, at, left, WHOLE) - base,)
    return base, d


@triton.jit
def total(terms, TARGETS: tl.constexpr):
    """(t_1 + t_2) + ... + t_N."""
    s = terms[0]
    for i in tl.static_range(1, TARGETS):
        s = s + terms[i]
    return s


@triton.jit
def is_finite(x):
    return (bits_of(x) & 0x7FFFFFFF) < INF


@triton.jit
def divide(x, N: tl.constexpr):
    """x / N, correctly rounded; if N is a power of two, as a product with its exact reciprocal."""
    if N & (N - 1) == 0:
        quotient = x * (1.0 / N)
    else:
        quotient = tl.div_rn(x, tl.full(x.shape, N, tl.float32))
    return quotient


@triton.jit
def spread(d, s, N: tl.constexpr):
    """N times the score: ((d_1-m)^2 + (d_2-m)^2) + ... + (d_N-m)^2, where m = s / N and s is the sum of d."""
    mean = divide(s, N)
    squared = ()
    for i in tl.static_range(N):
        away = d[i] - mean
        squared = squared + (away * away,)
    return total(squared, N)


@triton.jit
def by_rows(x, rows, flat):
    """x >= 0 times the factor of each element's row, at most the largest finite number.

    rows: pointer to two int64, the elements of a row and the address of the factors: fp32, one per row, padded by as
    many as the last tile may reach beyond the end. flat: the elements' flat indices, int64.
    """
    factors = tl.load(rows + 1).to(tl.pointer_type(tl.float32))
    return tl.minimum(x * tl.load(factors + flat // tl.load(rows)), LARGEST)


@triton.jit
def magnitude(d, inputs, flat, N: tl.constexpr):
    """|d|, times the rows' factors if `inputs` ends with by_rows' `rows`, after base and targets."""
    x = tl.abs(d)
    if len(inputs) > N + 1:
        x = by_rows(x, inputs[N + 1], flat)
    return x


@triton.jit
def score_before(d, s, inputs, flat, N: tl.constexpr, OF: tl.constexpr):
    """A score before its division by N: the spread (OF -1), or target OF's `magnitude`, which is not divided."""
    if OF < 0:
        x = spread(d, s, N)
    else:
        x = magnitude(d[OF], inputs, flat, N)
    return x


@triton.jit
def bits_of_score(x, N: tl.constexpr, OF: tl.constexpr):
    """A score's bits, from score_before."""
    if OF < 0:
        bits = bits_of(divide(x, N))
    else:
        bits = bits_of(x)
    return bits


@triton.jit
def score_bits(inputs, start, at, left, N: tl.constexpr, OF: tl.constexpr):
    """The elements' scores as int32 bits; 0 beyond the end, and where s is not finite."""
    _, d = task_vectors(inputs, start, at, left, False, N)
    s = total(d, N)
    return tl.where(
        is_finite(s), bits_of_score(score_before(d, s, inputs, start + at, N, OF), N, OF), 0
    )


@triton.jit
def squares(d, TARGETS: tl.constexpr):
    """Each d_i^2."""
    q = ()
    for i in tl.static_range(TARGETS):
        q = q + (d[i] * d[i],)
    return q


@triton.jit
def squarable(d, s, TARGETS: tl.constexpr):
    """d as it enters the energies: 0 where s is not finite, else clamped to +-MOST_SQUARABLE."""
    finite = is_finite(s)
    clamped = ()
    for i in tl.static_range(TARGETS):
        within = tl.minimum(tl.maximum(d[i], -MOST_SQUARABLE), MOST_SQUARABLE)
        clamped = clamped + (tl.where(finite, within, 0.0),)
    return clamped


@triton.jit
def block_peaks(q, TARGETS: tl.constexpr):
    """The largest square of each block and target, as uint32 bits: a tuple of [ROWS].

    NaN exceeds every number, whatever its sign.
    """
    peaks = ()
    for i in tl.static_range(TARGETS):
        peaks = peaks + (tl.max(q[i].to(tl.uint32, bitcast=True), axis=1),)
    return peaks


@triton.jit
def exponent_of(peak):
    """E: the exponent field that scales a block's squares."""
    return tl.maximum((peak >> 23).to(tl.int32), LEAST_EXPONENT)


@triton.jit
def quanta(q, exponent):
    """rint(q * 2^(149-E)), in [0, 2^23], plus RINT_MAGIC_BITS."""
    return bits_of(q * float_of((276 - exponent) << 23) + RINT_MAGIC)


@triton.jit
def add_quanta(q, peaks, to):
    """Adds each block's integer sum of q to the sum of its exponent in `to`: [256] int64. peaks: of q.

    256 * RINT_MAGIC_BITS is 0 modulo 2^32, and a block's sum is at most 2^31.
    """
    exponent = exponent_of(peaks)
    biased = quanta(q, exponent[:, None]).to(tl.uint32, bitcast=True)
    sums = tl.sum(biased, axis=1).to(tl.uint32, bitcast=True).to(tl.int64)
    tl.atomic_add(to + exponent, sums, mask=sums != 0, sem="relaxed")


@triton.jit
def add_energies(q, peaks, bins, stripe, TARGETS: tl.constexpr):
    """Adds each target's squares to bins[stripe]: [TARGETS, 256] int64."""
    for i in tl.static_range(TARGETS):
        add_quanta(q[i], peaks[i], bins + (stripe * TARGETS + i) * BLOCK)


@triton.jit
def first_reaching(score, N: tl.constexpr):
    """The least fp32 x (as int64 bits) with x / N >= `score` (bits); above INF if there is none.

    The division is monotone, so undivided numbers are compared with such bounds instead of being divided.
    """
    below = tl.full((), 0, tl.int64)  # so many numbers are known to have a smaller quotient
    for bit in range(31):
        trial = below + (tl.full((), 1 << 30, tl.int64) >> bit)
        last = tl.minimum(trial - 1, INF).to(tl.int32)
        less = (trial - 1 <= INF) & (bits_of(divide(float_of(last), N)) < score)
        below = tl.where(less, trial, below)
    return below


@triton.jit
def bounds_of(low, high, N: tl.constexpr):
    """(least, largest) of the fp32 x with x / N in [low, high], all as int64 bits."""
    return first_reaching(low, N), first_reaching(high + 1, N) - 1
