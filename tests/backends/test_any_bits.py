"""survey and fuse on any bits at all: every backend rounds and selects alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuseo1_kernels import fuse, survey
from fuseo1_kernels.backends import _cpu
from fuseo1_kernels.backends.contract import Band, Clamp, Cut, Draw, FuseParams, Select
from support.fuse_cases import ELECTS, fused
from support.oracles import fuse as emulation
from support.oracles import sce as sce_oracle
from support.tensors import (
    BF16,
    DTYPES,
    FP16,
    FP32,
    QUIET_NAN,
    assert_same_bits,
    bits,
    instruction_set,
    learned,
)

_WIDTH = {BF16: 16, FP16: 16, FP32: 32}
_EDGES = {
    BF16: [0, 0x8000, 1, 0x8001, 0x7F, 0x80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7F81, 0x7FC0, 0xFFFF],
    FP16: [0, 0x8000, 1, 0x8001, 0x3FF, 0x400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFFFF],
    FP32: [0, 1 << 31, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000,
           0x7F800001, 0x7FC00000, 0xFFFFFFFF, 0x5F7FFFFF, 0x5F800000, 0x33000000],
}  # fmt: skip


@st.composite
def any_tensors(draw: st.DrawFn, least: int = 1) -> list[torch.Tensor]:
    """A base and up to five targets, each of any dtype, made of any bits, or near the base."""
    numel, near = draw(st.integers(0, 40)), draw(st.sampled_from(["", "by bits", "by 64ths"]))
    tensors: list[torch.Tensor] = []
    for _ in range(draw(st.integers(least, 6))):
        dtype = draw(st.sampled_from(DTYPES))
        moves = st.lists(st.integers(-2, 2), min_size=numel, max_size=numel)
        if tensors and near == "by 64ths":
            tensors.append((tensors[0].float() * (1 + torch.tensor(draw(moves)) / 64)).to(dtype))
            continue
        if tensors and near:
            dtype = tensors[0].dtype
            values = [f + m for f, m in zip(bits(tensors[0]).tolist(), draw(moves), strict=True)]
        else:
            element = st.integers(0, (1 << _WIDTH[dtype]) - 1) | st.sampled_from(_EDGES[dtype])
            values = draw(st.lists(element, min_size=numel, max_size=numel))
        top = 1 << _WIDTH[dtype]
        signed = [(v + top // 2) % top - top // 2 for v in values]
        kind = torch.int32 if dtype == FP32 else torch.int16
        tensors.append(torch.tensor(signed, dtype=kind).view(dtype))
    return tensors


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
    """Up to five targets, and any parameters for them."""
    tensors = draw(any_tensors())
    targets = len(tensors) - 1
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
        alone=draw(st.one_of(st.none(), some)) or None,
        scale=draw(_NUMBER),
        base_scale=draw(_NUMBER),
        selects=draw(st.lists(_SELECT, min_size=targets, max_size=targets).map(tuple)),
    )


@given(
    tensors=any_tensors(least=2),
    topk=st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.0, 1.0)),
    weights=st.lists(st.floats(0.0, 1.0, width=32), min_size=5, max_size=5),
    out_dtype=st.sampled_from(DTYPES),
    masked=st.booleans(),
    floor=st.sampled_from([0.0, float(torch.tensor(1e-6, dtype=FP32))]),
)
def test_any_bits(
    tensors: list[torch.Tensor],
    topk: float,
    weights: list[float],
    out_dtype: torch.dtype,
    masked: bool,
    floor: float,
) -> None:
    base, *targets = tensors
    expected = survey(base, targets, select_topk=topk, backend="reference")
    params = FuseParams(
        tuple(weights[: len(targets)]), floor, masked, expected.threshold, expected.tie_limit
    )
    expected_out = fuse(base, targets, params, out_dtype=out_dtype, backend="reference")
    for isa in _cpu.available_isas():
        with instruction_set(isa):
            result = survey(base, targets, select_topk=topk, backend="cpu", threads=2)
            merged = fuse(base, targets, params, out_dtype=out_dtype, backend="cpu", threads=2)
        assert learned(result) == learned(expected), isa
        assert_same_bits(merged, expected_out, isa)


@given(merge=any_merge(), out=st.sampled_from(DTYPES))
def test_any_bits_and_parameters(
    merge: tuple[list[torch.Tensor], FuseParams], out: torch.dtype
) -> None:
    tensors, params = merge
    expected = emulation.fuse(tensors, params, out, 256)
    for isa in _cpu.available_isas():
        with instruction_set(isa):
            assert_same_bits(fused("cpu", tensors, params, out, 256), expected, isa)


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
    assert_same_bits(merged, sce_oracle.rounded(values.double(), dtype))
