"""fuse beyond SCE, on the CPU: elections, selections, divisors and scales, beside an emulation in numpy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuseo1_kernels.backends import _cpu
from fuseo1_kernels.backends.arrays import Array, Buffer
from fuseo1_kernels.backends.contract import (
    NONE,
    Band,
    Clamp,
    Cut,
    Draw,
    Elect,
    FuseParams,
    Select,
)
from fuseo1_kernels.backends.cpu import CpuBackend
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.in_memory.ops import as_array
from support.file_ranges import stored
from support.fuse_cases import ELECTS, MIXED, MODES, WEIGHTS, bit_masks, selections, tensors_of
from support.oracles import fuse as emulation
from support.pairwise import pairwise
from support.tensors import (
    BF16,
    CPUS,
    DTYPES,
    FP16,
    FP32,
    ISAS,
    assert_same_bits,
    instruction_set,
    require_isa,
    siblings,
)

SIZES = (0, 1, 255, 256, 257, 4097, 70_000)


def arrays_of(tensors: Sequence[torch.Tensor]) -> list[Array]:
    return [as_array(t.contiguous()) for t in tensors]


def fused(
    tensors: Sequence[torch.Tensor],
    params: FuseParams,
    dtype: torch.dtype,
    offset: int = 0,
    threads: int = 1,
) -> torch.Tensor:
    out = torch.full((tensors[0].numel(),), 7.0, dtype=dtype)
    bad = CpuBackend().fuse(arrays_of(tensors), params, as_array(out), offset, threads)
    assert bad == int((~torch.isfinite(out)).sum())
    return out


# --- the numbers that selections are drawn by ---


@pytest.mark.parametrize(
    ("counter", "key", "known"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "5f6fb709 0d893f64 4f121f81 4f730a48"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "5207ddc2 45165e59 4d8ee751 8c52f662"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "4dfccaba 190a87f0 c47362ba b6b5242a"),
    ],
)  # fmt: skip
def test_the_emulation_gives_random123s_known_answers(counter: str, key: str, known: str) -> None:
    words = [np.array([int(w, 16)], dtype=np.uint64) for w in counter.split()]
    found = emulation.philox(words, [int(w, 16) for w in key.split()])
    assert [int(w[0]) for w in found] == [int(w, 16) for w in known.split()]


def drawn(key: int, limit: int, offset: int, numel: int) -> torch.Tensor:
    """Return a mask of the elements of a chunk that the kernels draw."""
    base, target = torch.zeros(numel, dtype=BF16), torch.ones(numel, dtype=BF16)
    params = FuseParams((1.0,), elect="none", divisor=1.0, selects=(Draw(key, limit),))
    return fused([base, target], params, BF16, offset).bool()


def test_draws_are_random123s_known_answers(cpu: str) -> None:
    """Of counter 0 and key 0, words 0 to 3: elements 0, 64, 128 and 192."""
    for j, word in enumerate((0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)):
        assert not drawn(0, word, 0, 256)[64 * j]
        assert drawn(0, word + 1, 0, 256)[64 * j]


@pytest.mark.parametrize("key", [0, 1, 0xFFFFFFFF, 1 << 32, 0xDEADBEEF01234567, (1 << 64) - 1])
def test_draws_depend_on_key_and_flat_index_alone(cpu: str, key: int) -> None:
    for offset in (0, 256, 1 << 20, (1 << 34) - 512, 1 << 34, 0x7FFFFFFFFF00, (1 << 62) + 768):
        words = torch.from_numpy(emulation.words(key, offset, 1100).astype(np.int64))
        for limit in (0, 1, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xF0000000, 0xFFFFFFFF):
            assert torch.equal(drawn(key, limit, offset, 1100), words < limit)


# --- everything, beside the emulation ---


@cache
def expected(
    numel: int, dtypes: tuple[torch.dtype, ...], params: FuseParams, dtype: torch.dtype
) -> torch.Tensor:
    return emulation.fuse(tensors_of(numel, 3, dtypes), params, dtype)


@pairwise("cpu, elect, numel", CPUS, ELECTS, SIZES, indirect=["cpu"])
def test_every_election_selection_and_divisor(cpu: str, elect: Elect, numel: int) -> None:
    pairs = list(itertools.product(selections(3).items(), MODES))
    some = pairs if numel < 4096 else pairs[:: len(MODES) + 1]  # each selection, each mode
    for ((name, selects), mode), dtypes in itertools.product(some, ((BF16,), MIXED)):
        params = FuseParams(WEIGHTS[:3], elect=elect, selects=selects, **mode)  # type: ignore[arg-type]
        for dtype in DTYPES:
            merged = fused(tensors_of(numel, 3, dtypes), params, dtype)
            assert_same_bits(merged, expected(numel, dtypes, params, dtype), (dtypes, name, mode))


@pairwise("cpu, elect, targets", CPUS, ELECTS, (0, 1, 2, 3, 4, 5, 17), indirect=["cpu"])
def test_any_number_of_targets(cpu: str, elect: Elect, targets: int) -> None:
    tensors = tensors_of(1300, targets, (BF16, FP16))
    weights = tuple(itertools.islice(itertools.cycle(WEIGHTS), targets))
    plain = FuseParams(weights, elect=elect)
    for selects, out in itertools.product(selections(targets).values(), DTYPES):
        for params in (
            replace(plain, selects=selects),
            replace(plain, selects=selects, divisor=2.0, scale=-0.5, base_scale=1.5),
            replace(
                plain, selects=selects, shares=weights[::-1], masked=True, threshold=0x35000000
            ),
        ):
            assert_same_bits(fused(tensors, params, out), emulation.fuse(tensors, params, out))


def test_without_targets_the_base_is_rounded(cpu: str) -> None:
    base = siblings(1000, 0, FP32)[0]
    base[:4] = torch.tensor([-0.0, torch.nan, torch.inf, 1e-45])
    assert_same_bits(fused([base], FuseParams(()), FP32)[2:], base[2:])
    for dtype in DTYPES:
        half = fused([base], FuseParams((), base_scale=0.5), dtype)
        assert_same_bits(half[2:], (base * 0.5).to(dtype)[2:])
        assert half[0] == 0 and half[0].signbit() and half[1].isnan()


def test_nobody_survives_and_minus_zero_stays(cpu: str) -> None:
    """Whatever the signs of scale and divisor; a survivor of weight 0 does turn it."""
    tensors = [torch.full((300,), -0.0), torch.full((300,), -0.0), torch.full((300,), -0.0)]
    for elect, scale, divisor in itertools.product(
        ELECTS, (1.0, -1.0, 0.0, -0.0), (None, 1.0, -1.0)
    ):
        params = FuseParams((1.0, -1.0), elect=elect, scale=scale, divisor=divisor)
        for other in (params, replace(params, floor_divisor=-1.0)):
            assert_same_bits(fused(tensors, other, FP32), tensors[0])
    tensors[1] = torch.full((300,), -1.0)
    params = FuseParams((0.0, 0.0), scale=-1.0)
    assert not fused(tensors, params, FP32).signbit().any()
    assert_same_bits(fused(tensors, params, FP32), emulation.fuse(tensors, params, FP32))


def test_what_is_not_finite_is_never_left_out(cpu: str) -> None:
    for value, elect in itertools.product((torch.inf, -torch.inf, torch.nan), ELECTS):
        base, target = torch.zeros(600), torch.zeros(600)
        target[::5] = value
        for select in (Band(NONE), Band(drop=Cut(0, 1 << 40)), Draw(3, 0), Clamp(0.5)):
            params = FuseParams((1.0,), elect=elect, divisor=1.0, selects=(select,))
            out = fused([base, target], params, BF16)
            assert out[::5].isnan().all() and int(out.isnan().sum()) == 120


# --- chunks, threads, files ---


@pytest.mark.parametrize("elect", ELECTS)
def test_chunks_and_threads_change_no_bit(cpu: str, elect: Elect) -> None:
    numel, first = 70_001, 1 << 34
    tensors = tensors_of(numel, 3, MIXED)
    here = tuple(
        replace(s, keep=replace(s.keep, tie_limit=s.keep.tie_limit + first))
        if isinstance(s, Band)
        else s
        for s in selections(3)["in turn"]
    )
    params = FuseParams(WEIGHTS[:3], elect=elect, selects=here)
    whole = emulation.fuse(tensors, params, BF16, first)
    for threads in (1, 2, 3):
        assert_same_bits(fused(tensors, params, BF16, first, threads), whole)
    for size in (256, 4352, 65_536):
        parts = [
            fused([t[at : at + size] for t in tensors], params, BF16, first + at)
            for at in range(0, numel, size)
        ]
        assert_same_bits(torch.cat(parts), whole)


def native(selects: Sequence[_cpu.Select], elect: int = _cpu.ELECT_WEIGHTED) -> _cpu.FuseParams:
    return _cpu.FuseParams(
        weights=WEIGHTS[: len(selects)], shares=(), elect=elect, divisor=0.0, floor_divisor=0.0, scale=1.0,
        base_scale=1.0, selects=selects, masked=False, threshold=0, tie_limit=-1,
    )  # fmt: skip


@pytest.mark.parametrize("numel", SIZES)
def test_bits_select(cpu: str, numel: int) -> None:
    """They are told from the chunk's first element, wherever in the tensor that is."""
    tensors = tensors_of(numel, 3, MIXED)
    masks, words = bit_masks(numel)
    params = native([_cpu.Select.bits(w.ctypes.data) for w in words])
    by_bits = emulation.fuse(tensors, FuseParams(WEIGHTS[:3], elect="weighted"), BF16, 0, masks)
    places = [(a.address, a.dtype.abi) for a in arrays_of(tensors)]
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


# --- any bits, any parameters ---

_NUMBER = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-6, 1e-45]), st.floats(-4, 4, width=32)
)
_CUT = st.builds(
    Cut,
    st.one_of(st.sampled_from([0, 0x7F7FFFFF, 0x7F800000, 0x7FFFFFFF]), st.integers(0, 0x7FFFFFFF)),
    st.sampled_from([-1, 0, 256 + 17, 1 << 40]),
)
_SELECT: st.SearchStrategy[Select] = st.one_of(
    st.none(),
    st.builds(Band, _CUT, _CUT),
    st.builds(Draw, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)),
    st.builds(Clamp, st.one_of(st.just(torch.inf), st.floats(0, 2, width=32))),
)


@st.composite
def any_merge(draw: st.DrawFn) -> tuple[list[torch.Tensor], FuseParams]:
    """Up to five targets of any dtypes and bits, or near their base, and any parameters for them."""
    numel, targets = draw(st.integers(0, 40)), draw(st.integers(0, 5))
    near, tensors = draw(st.booleans()), list[torch.Tensor]()
    for _ in range(targets + 1):
        dtype = draw(st.sampled_from(DTYPES))
        size = numel * dtype.itemsize
        raw = bytearray(draw(st.binary(min_size=size, max_size=size)) or b"")
        tensor = (
            torch.frombuffer(raw, dtype=torch.uint8).view(dtype)
            if raw
            else torch.zeros(0, dtype=dtype)
        )
        if near and tensors:
            moved = draw(st.lists(st.integers(-2, 2), min_size=numel, max_size=numel))
            tensor = (tensors[0].float() * (1 + torch.tensor(moved) / 64)).to(dtype)
        tensors.append(tensor)
    some = st.lists(_NUMBER, min_size=targets, max_size=targets).map(tuple)
    return tensors, FuseParams(
        weights=draw(some),
        floor_divisor=draw(st.sampled_from([0.0, 1e-6, 0.5, -0.5])),
        masked=draw(st.booleans()),
        threshold=draw(st.integers(0, 0x7FFFFFFF)),
        tie_limit=draw(st.sampled_from([-1, 280, 1 << 40])),
        elect=draw(st.sampled_from(ELECTS)),
        divisor=draw(st.one_of(st.none(), _NUMBER)),
        shares=draw(st.one_of(st.none(), some)) or None,
        scale=draw(_NUMBER),
        base_scale=draw(_NUMBER),
        selects=draw(st.lists(_SELECT, min_size=targets, max_size=targets).map(tuple)),
    )


@pytest.mark.parametrize("isa", ISAS)
@given(merge=any_merge(), out=st.sampled_from(DTYPES))
def test_any_bits_and_parameters(
    isa: str, merge: tuple[list[torch.Tensor], FuseParams], out: torch.dtype
) -> None:
    load_backend("cpu")
    require_isa(isa)
    tensors, params = merge
    with instruction_set(isa):
        assert_same_bits(
            fused(tensors, params, out, 256), emulation.fuse(tensors, params, out, 256)
        )
