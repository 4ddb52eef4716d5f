"""RAM and RAM+ beside their formulas in float64, element by element, and the corners of their counts."""

from __future__ import annotations

import pytest
import torch

from fuseo1_kernels import merge_tensors
from fuseo1_kernels.backends.contract import Overlaps
from fuseo1_kernels.methods.ram import Ram
from support.tensors import BF16, DTYPES, FP32, assert_same_bits, siblings


def float64(
    tensors: list[torch.Tensor], epsilon: float, r: float = 0.0, alpha: float = 0.0
) -> torch.Tensor:
    """arXiv 2601.13572, of one tensor: r 0 is RAM."""
    base, *targets = [t.double().flatten() for t in tensors]
    d = torch.stack([(t - base).float().double() for t in targets])
    changed = d.abs() > epsilon
    together = changed.sum(dim=0) > 1
    out = base.clone()
    for f in range(base.numel()):
        who = changed[:, f].nonzero().flatten().tolist()
        if len(who) == 1:
            mine = changed[who[0]]
            overlap = int((mine & together).sum()) / int((mine & ~together).sum())
            out[f] += (1 + r * min(overlap, alpha)) * d[who[0], f]
        elif who:
            out[f] += sum(d[i, f] for i in who) / len(who)
    return out.view(tensors[0].shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("targets", [1, 2, 3, 6])
def test_beside_float64(backend: str, targets: int, dtype: torch.dtype) -> None:
    tensors = siblings((40, 33), targets, dtype)
    for method, own in (("ram", {}), ("ramplus_tl", {"r": 0.5, "alpha": 7.0})):
        given = {"epsilon": 2e-3, **own}
        merged = merge_tensors(tensors, method, base_index=0, parameters=given, backend=backend)
        expected = float64(tensors, **given)
        assert not torch.equal(merged, tensors[0])
        # The one rounding is the output's; fp64 itself decides next to its ties.
        assert int((merged != expected.to(dtype)).sum()) <= 1
        assert float((merged.double() - expected).abs().max()) <= float(
            torch.finfo(dtype).eps * expected.abs().max()
        )


def test_what_is_shared_and_what_is_alone(backend: str) -> None:
    """By hand: target 1 has one element with target 2 and two alone, target 2 one and one."""
    base = torch.zeros(5, dtype=FP32)
    one = torch.tensor([4.0, 2.0, -6.0, 0.0, 0.5])
    two = torch.tensor([2.0, 0.5, 0.0, 8.0, -0.5])
    found = {
        method: merge_tensors(
            [base, one, two], method, base_index=0, parameters=given, backend=backend
        ).tolist()
        for method, given in {
            "ram": {"epsilon": 0.5},
            "ramplus_tl": {"epsilon": 0.5, "r": 0.5, "alpha": 0.75},
        }.items()
    }
    assert found["ram"] == [3.0, 2.0, -6.0, 8.0, 0.0]
    # 1/2 below alpha; 1/1 above it.
    assert found["ramplus_tl"] == [3.0, 2.0 * 1.25, -6.0 * 1.25, 8.0 * 1.375, 0.0]


def test_nothing_of_its_own_is_raised_by_nothing(backend: str) -> None:
    base, target = siblings((7, 11), 1, BF16)
    # The same element in both, or in none: means alone.
    for targets in ([target, target], [base, base], [target, base]):
        given = [base, *(t.clone() for t in targets)]
        merged = merge_tensors(given, "ramplus_tl", base_index=0, backend=backend)
        assert_same_bits(merged, targets[0])
    assert Ram(2, 0.0, 0.1, 0.2).params(()).alone is None


@pytest.mark.parametrize(
    ("epsilon", "threshold"),
    [
        (0.0, 0),
        (2.0**-149, 1),
        (1e-46, 0),
        (1.0, 0x3F800000),
        (1e-5, 0x3727C5AC),
        (0.1, 0x3DCCCCCD - 1),
    ],
)
def test_epsilon_is_compared_as_it_is(epsilon: float, threshold: int) -> None:
    """An fp32 |d| is above 0.1 if it is above the largest fp32 that is not: 0.1 rounds up."""
    [select] = Ram(1, epsilon).params(()).selects
    assert select.keep.threshold == threshold  # type: ignore[union-attr]


def test_the_rule_asks_for_counts_only_where_they_matter() -> None:
    assert Ram(2, 1e-5).request(()) is None
    asked = Ram(2, 1e-5, 0.1, 0.2).request(())
    assert isinstance(asked, Overlaps) and len(asked.selects) == 2
