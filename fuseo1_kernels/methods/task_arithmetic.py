"""Task arithmetic and what grew from it: TIES, DARE, breadcrumbs, DELLA. One rule, and a row of a table for each.

    z_i = d_i, sparsified to the share `density` of its elements, then rescaled to its L1 norm (rescale)
    out = b + lambda * (sum of weight_i z_i over the survivors of the election) / divisor

divisor (normalize): the sum of weight_i, over the survivors where there is an election; 1 if it is 0. Sources: the
papers that the table names, and mergekit 0.1.5 for how it combines them (`rescale` by norms is its way; DARE's paper
divides by the density, which is the same on average).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import xxhash

from ..backends import FuseParams, SurveyResult
from ..backends.requests import NONE, Band, Draw, Magnitudes, Norms, Request, Select
from .record import Method, Parameter, Target, Values, method

Sparsify = Literal["nothing", "small", "small and large", "random"]

# Norms below this are not rescaled to or by; sums of weights below the other are taken for 0.
_LEAST_NORM = 1e-7
_LEAST_WEIGHT = 1e-8


@dataclass(frozen=True)
class TaskArithmetic:
    """The rule. Values that differ between models stand in their order.

    Attributes:
        densities: the share of elements that is kept; 1 and more: all of them, as they are.
        ranks: where magnitudes decide: how many of the largest are kept and dropped, (kept and dropped, dropped).
        keys: where chance decides: keys of the draws.
        elects: whether signs are elected.
    """

    weights: tuple[float, ...]
    densities: tuple[float, ...]
    scale: float
    elects: bool
    normalize: bool
    rescale: bool
    ranks: tuple[tuple[int, int], ...] = ()
    keys: tuple[int, ...] = ()

    def request(self, learned: Sequence[SurveyResult]) -> Request | None:
        if not any(self._sparse):
            return None
        if self.ranks and not learned:
            drops = any(dropped for _, dropped in self.ranks)
            return Magnitudes(tuple(pair if drops else pair[:1] for pair in self.ranks))
        if self.rescale and len(learned) == bool(self.ranks):
            return Norms(self._selects(learned))
        return None

    def params(self, learned: Sequence[SurveyResult]) -> FuseParams:
        weights = self.weights
        if self.rescale and any(self._sparse):
            weights = tuple(
                w * _rescaling(*norms) for w, norms in zip(weights, learned[-1].norms, strict=True)
            )
        return FuseParams(
            weights,
            elect="weighted" if self.elects else "none",
            divisor=self._divisor,
            shares=self.weights,
            scale=self.scale,
            selects=self._selects(learned) if any(self._sparse) else (),
        )

    @property
    def _divisor(self) -> float | None:
        """None: the sum of the survivors' weights."""
        if not self.normalize:
            return 1.0
        if self.elects:
            return None
        total = math.fsum(self.weights)
        return total if abs(total) >= _LEAST_WEIGHT else 1.0

    @property
    def _sparse(self) -> list[bool]:
        return [density < 1 for density in self.densities]

    def _selects(self, learned: Sequence[SurveyResult]) -> tuple[Select, ...]:
        selects: list[Select] = []
        for i, density in enumerate(self.densities):
            if density >= 1:
                selects.append(None)
            elif density <= 0:
                selects.append(Band(keep=NONE))
            elif self.keys:
                selects.append(Draw(self.keys[i], int(density * 2**32)))
            else:
                selects.append(Band(*learned[0].cuts[i]))
        return tuple(selects)


def _rescaling(every: float, kept: float) -> float:
    return 1.0 if min(every, kept) < _LEAST_NORM else every / kept


def draw_key(seed: int, tensor: str, model: str) -> int:
    """The key of a model's random masks in a tensor."""
    return xxhash.xxh3_64_intdigest(f"{seed}\0{tensor}\0{model}".encode())


def _kept_and_dropped(numel: int, density: float, gamma: float | None) -> tuple[int, int]:
    """How many of the largest magnitudes are kept and dropped, and how many of them are dropped."""
    if density >= 1 or density <= 0:
        return numel, 0
    if gamma is None:
        return max(1, int(density * numel)), 0
    # Fewer large ones are dropped where density asks for so many that too few would be left.
    kept = int(density * numel)
    small = max(0, numel - kept - int(gamma * numel))
    return numel - small, numel - small - kept


def _row(
    name: str,
    reference: str,
    sparsify: Sparsify,
    *,
    elects: bool,
    normalize: bool = False,
    rescale: bool = False,
) -> Method:
    def rule(values: Values, target: Target) -> TaskArithmetic:
        densities = values["density"]
        ranks: tuple[tuple[int, int], ...] = ()
        keys: tuple[int, ...] = ()
        if sparsify == "nothing":
            densities = (1.0,) * len(densities)
        elif sparsify == "random":
            keys = tuple(draw_key(target.seed, target.name, model) for model in target.models)
        else:
            gammas = values.get("gamma", (None,) * len(densities))
            ranks = tuple(
                _kept_and_dropped(target.numel, d, g)
                for d, g in zip(densities, gammas, strict=True)
            )
        return TaskArithmetic(
            values["weight"],
            densities,
            values["lambda"],
            elects,
            values["normalize"],
            values["rescale"],
            ranks,
            keys,
        )

    extra = []
    if sparsify == "small and large":
        extra.append(Parameter("gamma", "float", 0.01, low=0.0, high=1.0, per_model=True))
    return method(
        name,
        reference,
        rule,
        Parameter("weight", "float", None, per_model=True, required=True),
        Parameter(
            "density",
            "float",
            1.0,
            low=0.0,
            high=1.0,
            per_model=True,
            idle=sparsify == "nothing",
        ),
        *extra,
        Parameter("lambda", "float", 1.0),
        Parameter("normalize", "bool", normalize),
        Parameter("rescale", "bool", rescale),
        Parameter("int8_mask", "bool", False),  # there are no masks to store
    )


TASK_ARITHMETIC = (
    _row("task_arithmetic", "https://arxiv.org/abs/2212.04089", "nothing", elects=False),
    _row("ties", "https://arxiv.org/abs/2306.01708", "small", elects=True, normalize=True),
    _row("dare_ties", "https://arxiv.org/abs/2311.03099", "random", elects=True, rescale=True),
    _row("dare_linear", "https://arxiv.org/abs/2311.03099", "random", elects=False, rescale=True),
    _row("breadcrumbs", "https://arxiv.org/abs/2312.06795", "small and large", elects=False),
    _row("breadcrumbs_ties", "https://arxiv.org/abs/2312.06795", "small and large", elects=True),
)
