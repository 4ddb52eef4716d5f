"""Models that point away from each other: what cancels is known up to rounding only, and rounding is not magnified."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fuseo1_kernels import merge_tensors
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.errors import MergeError
from fuseo1_kernels.in_memory.ops import as_arrays
from fuseo1_kernels.methods import METHODS
from fuseo1_kernels.methods.rule import TensorSpec

NOISE = [0.0, 1e-7, 1e-6, 1e-4]
NUMBERS = st.floats(2**-6, 2**6, width=32) | st.floats(-(2**6), -(2**-6), width=32)


def noisy(noise: float, *factors: float) -> list[torch.Tensor]:
    """Multiples of one matrix, every element a little off."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(64, 64, generator=g)
    return [f * x * (1 + noise * torch.randn(64, 64, generator=g)) for f in factors]


def of_scalars(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([x]) for x in values]


def mean_length(tensors: list[torch.Tensor]) -> float:
    return math.fsum(float(t.double().norm()) for t in tensors) / len(tensors)


@pytest.mark.parametrize(
    ("values", "sign"),
    [
        ((0.192, 1.264, -1.29), 1),  # two against one
        ((1.5, 2.5, -3.5), 1),
        ((-0.3, 0.7, 0.9, -1.1, -0.2), -1),
        ((1.0, -2.0), 1),  # as many on either side: the first counts
        ((-0.7, 0.3, -0.9, 1.1), -1),
    ],
)
def test_karcher_of_one_element(backend: str, values: tuple[float, ...], sign: int) -> None:
    merged = merge_tensors(of_scalars(*values), "karcher", backend=backend)
    expected = sign * math.fsum(map(abs, values)) / len(values)
    assert float(merged) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("factors", [(1.0, -2.0, -3.0), (1.0, -3.0), (-1.0, 3.0, 0.7, -5.0)])
def test_karcher_of_opposed_models(backend: str, noise: float, factors: tuple[float, ...]) -> None:
    """The majority's direction, or the first one's where there is none."""
    tensors = noisy(noise, *factors)
    merged = merge_tensors(tensors, "karcher", backend=backend)
    length = mean_length(tensors)
    assert float(merged.double().norm()) == pytest.approx(length, rel=1e-5)
    along = tensors[1 if len(factors) == 3 else 0]
    difference = merged / length - along / along.norm()
    assert float(difference.norm()) <= 1e-6 + 2 * noise


@given(data=st.data(), numel=st.integers(1, 4), models=st.integers(2, 6))
def test_karcher_has_the_mean_length(data: st.DataObject, numel: int, models: int) -> None:
    drawn = st.lists(NUMBERS, min_size=numel, max_size=numel)
    tensors = [torch.tensor(data.draw(drawn)) for _ in range(models)]
    length = mean_length(tensors)
    merged = merge_tensors(tensors, "karcher", backend="reference")
    # Of several elements vectors may cancel, to a length that the sums of fp32's tell no better.
    known = 1e-5 if numel == 1 else 5e-5
    assert float(merged.double().norm()) == pytest.approx(length, rel=known)

    values = {name: p.default for name, p in METHODS["karcher"].parameters.items()}
    names = [str(i) for i in range(models)]
    rule = METHODS["karcher"].rule(values, TensorSpec.of_shape("w", (numel,), names, False, 0))
    request = rule.request([])
    assert request is not None
    learned = load_backend("reference").survey(as_arrays(tensors, least=1), request, 1)
    params = rule.params([learned])
    first = params.base_scale - math.fsum(params.weights)
    for factor, tensor in zip((first, *params.weights), tensors, strict=True):
        assert abs(factor) * float(tensor.double().norm()) < 100 * length


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("has_base", [False, True])
@pytest.mark.parametrize(
    ("method", "parameters", "factors", "share"),
    [
        ("nuslerp", {"weight": [1.0, 3.0]}, (1.0, -3.0), 0.25),
        ("nuslerp", {"weight": [1.0, 3.0], "nuslerp_flatten": False}, (1.0, -3.0), 0.25),
        ("multislerp", {"weight": 1.0}, (0.192, -1.29), 0.5),
    ],
)
def test_a_slerp_of_two_that_cancel_is_a_line(
    backend: str,
    noise: float,
    has_base: bool,
    method: str,
    parameters: dict[str, Any],
    factors: tuple[float, float],
    share: float,
) -> None:
    """Rounding alone would say which way the arc goes."""
    for tensors in (noisy(noise, *factors), of_scalars(*factors)):
        merged = merge_tensors(
            [torch.zeros_like(tensors[0])] * has_base + tensors,
            method,
            base_index=0 if has_base else None,
            parameters=parameters,
            backend=backend,
        )
        torch.testing.assert_close(merged, share * tensors[0] + (1 - share) * tensors[1])


def test_nuslerp_of_vectors_that_are_not_quite_opposed_is_an_arc(backend: str) -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.01])
    merged = merge_tensors([a, b], "nuslerp", parameters={"weight": 1.0}, backend=backend)
    torch.testing.assert_close(merged, torch.tensor([0.0, 2.0]), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("noise", NOISE)
def test_multislerp_of_three_that_cancel_is_refused(backend: str, noise: float) -> None:
    for tensors in (noisy(noise, 0.192, 1.264, -1.29), of_scalars(0.192, 1.264, -1.29)):
        with pytest.raises(MergeError, match="multislerp has no mean"):
            merge_tensors(
                tensors, "multislerp", parameters={"weight": [0.25, 0.25, 0.5]}, backend=backend
            )


@pytest.mark.parametrize("models", [2, 4, 16, 32])
def test_model_stock_at_its_pole_is_the_base(backend: str, models: int) -> None:
    """As many task vectors on either side: the cosines' rounding, times their number, is no angle."""
    g = torch.Generator().manual_seed(models)
    base = torch.zeros(1)
    for _ in range(6):
        # Half of them alike, and the others too: no error makes up for another's.
        one, other = torch.rand(2, 1, generator=g) + 0.1
        tuned = [one, -other] * (models // 2)
        merged = merge_tensors([base, *tuned], "model_stock", base_index=0, backend=backend)
        assert torch.equal(merged, base)
