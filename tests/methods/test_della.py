"""della and della_linear: whole merges beside the paper's formulas in float64, with equal masks.

Source: DELLA, arXiv 2406.11617; how norms rescale, mergekit 0.1.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

from fuseo1_kernels import merge_tensors
from fuseo1_kernels.backends.reference.philox import words
from fuseo1_kernels.errors import ConfigError, MergeError
from fuseo1_kernels.methods import METHODS
from fuseo1_kernels.methods.rule import TensorSpec
from fuseo1_kernels.methods.task_arithmetic import draw_key
from support.oracles import general as general_oracle
from support.oracles import sce as sce_oracle
from support.pairwise import pairwise
from support.tensors import BACKENDS, BF16, FP32, assert_same_bits, bits, siblings

WEIGHTS = (0.318309886, 0.577215665, 0.414213562)
LAMBDA = 0.7071067811865476
SHAPE = (300, 1000)


def mask(d: torch.Tensor, density: float, epsilon: float, key: int) -> torch.Tensor:
    """Return DELLA's selection from float64 rows: chances rise with the rank, and the first of equals ranks highest."""
    n = d.shape[-1]
    rows = d.abs().reshape(-1, n)
    # From the largest to the smallest, the first of equals first.
    order = torch.sort(rows, dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(n - 1, -1, -1).expand_as(order))
    p = (density - epsilon) + (rank.double() / (n - 1)) * (2 * epsilon)
    drawn = words(key, 0, d.numel()).view_as(rank)
    return (drawn < (p * 2**32).floor().long()).view_as(d)


@cache
def tuned(shape: tuple[int, ...]) -> list[torch.Tensor]:
    return siblings(shape, 3, BF16, growing=False)


@cache
def exact(
    method: str,
    shape: tuple[int, ...],
    densities: Sequence[float],
    epsilons: Sequence[float],
    normalize: bool,
    rescale: bool,
    seed: int,
) -> torch.Tensor:
    base, *targets = (t.double() for t in tuned(shape))
    elect, z = ELECT[method], []
    for i, target in enumerate(targets):
        d = target - base
        kept = mask(d, densities[i], epsilons[i], draw_key(seed, "", str(i + 1)))
        kept = torch.where(kept, d, 0.0)
        z.append(kept * (d.abs().sum() / kept.abs().sum()) if rescale else kept)
    divisor = None if normalize and elect != "none" else sum(WEIGHTS) if normalize else 1.0
    merged = general_oracle.merge(base, z, WEIGHTS, elect, divisor=divisor, scale=LAMBDA)
    return sce_oracle.rounded(merged, BF16)


def merged(
    backend: str, method: str, tensors: Sequence[torch.Tensor], seed: int = 0, **parameters: Any
) -> torch.Tensor:
    return merge_tensors(
        list(tensors),
        method,
        base_index=0,
        backend=backend,
        random_seed=seed,
        parameters={"weight": list(WEIGHTS[: len(tensors) - 1]), "lambda": LAMBDA, **parameters},
    )


ELECT = {"della": "weighted", "della_linear": "none"}
DENSITIES, EPSILONS = (0.5, 0.3, 0.8), (0.1, 0.25, 0.15)


def differ(out: torch.Tensor, right: torch.Tensor) -> float:
    """Elements in 100,000."""
    return int((bits(out) != bits(right)).sum()) / out.numel() * 100_000


@pairwise(
    "backend, method, shape",
    *(BACKENDS, [*ELECT], (SHAPE, (10, 30, 1000), (300_000,))),
    together=1,
    indirect=["backend"],
)
def test_few_elements_differ_from_the_formulas(
    backend: str, method: str, shape: tuple[int, ...]
) -> None:
    own: dict[str, Any] = {"density": list(DENSITIES), "epsilon": list(EPSILONS)}
    out = merged(backend, method, tuned(shape), **own)
    assert differ(out, exact(method, shape, DENSITIES, EPSILONS, method == "della", True, 0)) < 5


@pairwise(
    "backend, method, normalize, rescale",
    *(BACKENDS, [*ELECT], (False, True), (False, True)),
    indirect=["backend"],
)
def test_normalize_and_rescale(backend: str, method: str, normalize: bool, rescale: bool) -> None:
    how = {"density": 0.5, "normalize": normalize, "rescale": rescale}
    out = merged(backend, method, tuned(SHAPE), seed=7, **how)
    right = exact(method, SHAPE, (0.5,) * 3, (0.15,) * 3, normalize, rescale, 7)
    assert differ(out, right) < 5


@pytest.mark.parametrize("method", ELECT)
def test_all_backends_agree_to_the_bit(backend: str, method: str) -> None:
    for shape in ((), (1,), (7,), (3, 5), (40, 257), (5, 0), (0, 5)):
        tensors = siblings(shape, 3, (BF16, FP32))
        out = merged(backend, method, tensors, density=[0.5, 1.0, 0.0], epsilon=0.2)
        right = merged("reference", method, tensors, density=[0.5, 1.0, 0.0], epsilon=0.2)
        assert_same_bits(out, right, shape)


@pytest.mark.parametrize("method", ELECT)
def test_density_1_keeps_all_and_0_nothing(backend: str, method: str) -> None:
    """Whatever epsilon is."""
    tensors = siblings(SHAPE, 3, BF16)
    plain = {"della": "ties", "della_linear": "task_arithmetic"}[method]
    out = merged(backend, method, tensors, density=1.0, epsilon=0.9)
    assert_same_bits(out, merged(backend, plain, tensors))
    assert_same_bits(merged(backend, method, tensors, density=0.0, epsilon=0.9), tensors[0])


def test_seeds_and_models_draw_differently(backend: str) -> None:
    """Beside a base of 0 the same tensor three times: what is left of each is another half."""
    target = siblings(SHAPE, 1, FP32)[1]
    target[target == 0] = 1.0
    outs = [
        merged(backend, "della_linear", [torch.zeros(SHAPE), target], seed, density=0.5) != 0
        for seed in (0, 1)
    ]
    outs.append(
        merged(backend, "della_linear", [torch.zeros(SHAPE)] * 2 + [target], density=0.5) != 0
    )
    n, sigma = target.numel(), (target.numel() / 4) ** 0.5
    for i, one in enumerate(outs):
        assert abs(int(one.sum()) - n / 2) < 5 * sigma
        for other in outs[:i]:
            # Alike by 1/2 and a little: equal ranks have equal chances, p^2 + (1 - p)^2.
            assert n / 2 < int((one == other).sum()) < 0.53 * n


@pytest.mark.parametrize(
    ("density", "epsilon"), [(0.9, 0.15), (0.1, 0.1), (0.1, 0.15), (0.5, 0.5), (0.5, 3.0)]
)
@pytest.mark.parametrize("method", ELECT)
def test_chances_outside_0_and_1_are_refused(method: str, density: float, epsilon: float) -> None:
    with pytest.raises(ConfigError, match=r"model 1: density .*set an epsilon below 0\.[15]"):
        merged("cpu", method, siblings(10, 2), density=density, epsilon=epsilon)


def test_epsilon_is_a_number_of_each_model() -> None:
    with pytest.raises(MergeError, match=r"epsilon: must be a number of at least 0"):
        merged("cpu", "della", siblings(10, 2), epsilon=-0.1)
    epsilon = METHODS["della"].parameters["epsilon"]
    assert epsilon.default == 0.15 and epsilon.per_model


def test_the_rule_says_what_the_result_depends_on() -> None:
    """Rows and epsilons are part of its repr, which journals keep."""

    def rule(row: int, epsilon: float) -> str:
        target = TensorSpec("w", 1000, 1000 // row, row, ("a",), True)
        values = {"weight": (1.0,), "density": (0.5,), "epsilon": (epsilon,), "lambda": 1.0}
        return repr(METHODS["della"].rule({**values, "normalize": True, "rescale": True}, target))

    assert len({rule(10, 0.1), rule(100, 0.1), rule(10, 0.2)}) == 3
