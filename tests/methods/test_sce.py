"""SCE against its float64 oracle, and where it has nothing to go by."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from fuseo1_kernels import merge_tensors
from fuseo1_kernels.methods.sce import VARIANTS
from support.calls import sce
from support.oracles import sce as sce_oracle
from support.pairwise import pairwise
from support.tensors import (
    BF16,
    FP16,
    FP32,
    assert_same_bits,
    bits,
    denormals_flushed,
    siblings,
)


def merge(tensors: list[torch.Tensor], topk: float, variant: str, **options: Any) -> torch.Tensor:
    return merge_tensors(tensors, "sce", base_index=0, parameters=sce(topk, variant), **options)


# --- against float64 ---


@cache
def square(rms: float, growing: bool = True) -> list[torch.Tensor]:
    # Alike, two weights may come so close (1 in 100,000 for seed 0) that weighted means lie nearer to a bf16 tie than
    # fp32 can tell: 7 in 100,000 differ then, and docs/figures.md says so. Here they are a thousandth apart.
    return siblings((512, 512), 3, BF16, rms=rms, growing=growing, seed=1)


@pairwise("growing, rms, topk, variant", (True, False), (1e-3, 1e-4), (1.0, 0.5, 0.1), VARIANTS)
def test_under_5_in_100_000_elements_differ_from_float64(
    growing: bool, rms: float, topk: float, variant: str
) -> None:
    tensors = square(rms, growing)
    merged = merge(tensors, topk, variant)
    by_fp32 = sce_oracle.merge(tensors[0], tensors[1:], topk, variant, sce_oracle.fp32_scores)
    exact = sce_oracle.rounded(by_fp32, BF16)
    different = int((bits(merged) != bits(exact)).sum())
    assert different < 5e-5 * merged.numel(), f"{different} of {merged.numel()}"
    assert (bits(merged) != bits(tensors[0])).any()


@pytest.mark.parametrize("topk", [0.5, 0.1])
@pytest.mark.parametrize("rms", [1e-3, 1e-4])
def test_fp32_scores_select_what_exact_ones_do_but_for_ties(rms: float, topk: float) -> None:
    base, *targets = [t.double().flatten() for t in square(rms)]
    d = [t - base for t in targets]
    exact = sce_oracle.scores(d)
    mask = sce_oracle.top_k(exact, topk)
    wrong = mask != sce_oracle.top_k(sce_oracle.fp32_scores(d), topk)
    threshold = exact[mask].min()
    assert ((exact[wrong] - threshold).abs() <= 2.0**-20 * threshold).all()
    assert int(wrong.sum()) < 2e-3 * int(mask.sum())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_output_dtype_against_float64(backend: str, variant: str) -> None:
    tensors = siblings((200, 201), 4, FP32, rms=0.01)  # midpoints between outputs are unlikely
    exact = sce_oracle.merge(tensors[0], tensors[1:], 0.4, variant)
    for dtype, most in ((BF16, 6), (FP16, 30)):
        merged = merge(tensors, 0.4, variant, backend=backend, out_dtype=dtype)
        assert int((bits(merged) != bits(sce_oracle.rounded(exact, dtype))).sum()) <= most
    merged = merge(tensors, 0.4, variant, backend=backend, out_dtype=FP32)
    # b + num / den: each of a few roundings of numbers no larger than 0.2 is off by 2^-27 at most.
    assert (merged.double() - exact).abs().max() < 16 * 2.0**-27


# --- where SCE has nothing to go by: the table in docs/arithmetic.md ---


def mean_merge(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Uniform weights on all of d."""
    base, *targets = [t.float() for t in tensors]
    d = [t - base for t in targets]
    s = d[0]
    for x in d[1:]:
        s = s + x
    num, den = torch.zeros_like(base).double(), torch.zeros_like(base).double()
    for x in d:
        survives = torch.where(s >= 0, x > 0, x < 0)
        num = num + torch.where(survives, x, 0.0).double()
        den = den + survives.double()
    return torch.where(den > 0, (base + num / den.clamp(min=1.0)).float(), base)


def nothing() -> dict[str, tuple[list[torch.Tensor], tuple[float, ...], torch.Tensor]]:
    """Tensors, the select_topk of which nothing is selected, and the merge of all with equal weights."""
    large, small = (siblings(shape, 3, FP32, rms=0.1) for shape in ((50, 50), 99))
    base, target = siblings((50, 50), 1, FP32, rms=0.1)
    cases = {
        "select_topk 0": (large, (0.0,), mean_merge(large)),
        "k rounds down to 0": (small, (0.01,), mean_merge(small)),
        # One target has no variance.
        "a single target": ([base, target], (0.0, 0.5, 0.999), base + (target - base)),
    }
    base, target = siblings((50, 50), 1, BF16, rms=0.01)
    for targets in (2, 3, 4, 5, 7, 16):
        cases[f"{targets} identical targets"] = [base, *[target] * targets], (0.0, 0.5), target
    still = base.clone()
    still[0, :5] = -0.0
    cases["no target moved"] = [still] * 4, (0.0, 0.5), still
    return cases


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("tensors", "topks", "mean"), nothing().values(), ids=nothing())
def test_nothing_is_selected(
    backend: str,
    variant: str,
    tensors: list[torch.Tensor],
    topks: tuple[float, ...],
    mean: torch.Tensor,
) -> None:
    for topk in topks:
        merged = merge(tensors, topk, variant, backend=backend)
        assert_same_bits(merged, tensors[0] if variant == "mergekit" else mean)
    if len(topks) > 1:  # and nothing tells the targets apart
        assert_same_bits(merge(tensors, 1.0, variant, backend=backend), mean)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_element_is_selected(backend: str, variant: str) -> None:
    tensors = siblings(99, 3, FP32, rms=0.1)
    merged = merge(tensors, 1 / 99, variant, backend=backend)
    assert int((merged != tensors[0]).sum()) == (1 if variant == "mergekit" else 99)


def test_the_mergekit_variant_takes_equal_weights_below_a_mean_square_of_one_millionth(
    backend: str,
) -> None:
    base = torch.zeros(1000)
    for scale, equal in ((3e-4, True), (3.3e-4, False)):
        targets = [torch.full((1000,), scale), torch.full((1000,), 3 * scale)]
        weighted = (scale * 1 + 3 * scale * 9) / 10
        for variant, expected in (
            ("fuseo1", weighted),
            ("mergekit", 2 * scale if equal else weighted),
        ):
            merged = merge([base, *targets], 1.0, variant, backend=backend)
            torch.testing.assert_close(merged, torch.full((1000,), expected), rtol=1e-6, atol=0.0)


def test_weights_are_of_energies_however_small(backend: str) -> None:
    """But for the mergekit variant, which divides by 1e-6 at least: the first half is by a weight of 1e-8."""
    base, tiny, small, large = (torch.zeros(600) for _ in range(4))
    tiny += 2.0**-60
    merged = merge([base, tiny, 3 * tiny], 1.0, "fuseo1", backend=backend)
    torch.testing.assert_close(merged, 2.8 * tiny, rtol=1e-6, atol=0.0)
    small[:300], large[300:] = 1.0, 1e4
    for variant, expected in (("fuseo1", 1.0), ("mergekit", 0.01)):
        merged = merge([base, small, large], 1.0, variant, backend=backend)[:300]
        torch.testing.assert_close(merged, torch.full((300,), expected), rtol=1e-5, atol=0.0)


def test_the_mergekit_variant_masks_what_is_merged(backend: str) -> None:
    base = torch.zeros(1000, dtype=FP32)
    targets = [torch.linspace(1, 2, 1000), -torch.linspace(0.5, 1, 1000)]
    all_merged = merge([base, *targets], 0.25, "fuseo1", backend=backend)
    masked = merge([base, *targets], 0.25, "mergekit", backend=backend)
    assert torch.count_nonzero(all_merged) == 1000
    assert not masked[:750].any() and masked[750:].all()


def test_a_tiny_weight_is_kept_when_the_caller_flushes_denormals(cpu: str) -> None:
    base = torch.zeros(600)
    small, large = torch.zeros(600), torch.zeros(600)
    small[:300], large[300:] = 2.0**-5, 2.0**60  # weights 2^-130 to 1
    expected = merge_tensors([base, small, large], "sce", base_index=0, backend="reference")
    assert (expected[:300] == 2.0**-5).all()
    with denormals_flushed():
        merged = merge_tensors([base, small, large], "sce", base_index=0, backend=cpu)
    assert_same_bits(merged, expected)
