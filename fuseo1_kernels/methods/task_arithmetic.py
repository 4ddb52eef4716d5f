"""Task arithmetic, TIES, DARE, breadcrumbs and DELLA: one rule, and a table row for each method.

    z_i = d_i, sparsified to the share `density` of its elements, then rescaled to the L1 norm of d_i (rescale)
    out = b + lambda * (sum of weight_i z_i over the survivors of the election) / divisor

divisor (normalize): the sum of weight_i, over the survivors if there is an election; 1 if it is 0. Sources: the papers
in the table, and mergekit 0.1.5 for how they are combined (`rescale` by norms is mergekit's; DARE's paper divides by
the density, which is the same on average).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..backends.contract import (
    NONE,
    Band,
    Draw,
    FuseParams,
    Kept,
    Magnitudes,
    Norms,
    Ranked,
    Request,
    Select,
)
from ..backends.results import MagnitudesResult, NormsResult, SurveyResult, expect
from ..errors import ConfigError
from .method import Method, Parameter, Values, method
from .rule import LEAST_TOTAL, TensorSpec

Sparsify = Literal["nothing", "small", "small and large", "random", "random by rank"]

# If either norm is below this, nothing is rescaled.
_LEAST_NORM = 1e-7


@dataclass(frozen=True)
class TaskArithmetic:
    """The rule. Values that differ between models are in the models' order.

    Attributes:
        densities: the share of elements to keep; 1 or more: all of them, unchanged.
        elects: whether signs are elected.
        ranks: if magnitudes decide: how many of the largest are kept or dropped, and how many of these are dropped.
        keys: if chance decides: the keys of the draws.
        epsilons: if chance decides by rank: probabilities go from density - epsilon for a row's smallest magnitude to
            density + epsilon for its largest.
        row: if chance decides by rank: the elements of a row.
    """

    weights: tuple[float, ...]
    densities: tuple[float, ...]
    scale: float
    elects: bool
    normalize: bool
    rescale: bool
    ranks: tuple[tuple[int, int], ...] = ()
    keys: tuple[int, ...] = ()
    epsilons: tuple[float, ...] = ()
    row: int = 1

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
        kept: tuple[Kept | None, ...] = ()
        if self.rescale and any(self._sparse):
            survey = expect(NormsResult, learned[-1])
            pairs = zip(weights, survey.norms, strict=True)
            weights = tuple(w * _rescaling(*norms) for w, norms in pairs)
            kept = survey.kept
        return FuseParams(
            weights,
            elect="weighted" if self.elects else "none",
            divisor=self._divisor,
            shares=self.weights,
            scale=self.scale,
            selects=self._selects(learned) if any(self._sparse) else (),
            kept=kept,
        )

    @property
    def _divisor(self) -> float | None:
        """None: the sum of the survivors' weights."""
        if not self.normalize:
            return 1.0
        if self.elects:
            return None
        total = math.fsum(self.weights)
        return total if abs(total) >= LEAST_TOTAL else 1.0

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
            elif self.epsilons:
                epsilon = self.epsilons[i]
                selects.append(Ranked(self.keys[i], density - epsilon, 2 * epsilon, self.row))
            elif self.keys:
                selects.append(Draw(self.keys[i], int(density * 2**32)))
            else:
                selects.append(Band(*expect(MagnitudesResult, learned[0]).cuts[i]))
        return tuple(selects)


def _rescaling(every: float, kept: float) -> float:
    return 1.0 if min(every, kept) < _LEAST_NORM else every / kept


def draw_key(seed: int, tensor: str, model: str) -> int:
    """The key of a model's random masks in a tensor."""
    import xxhash  # merges that draw nothing do not need it

    return xxhash.xxh3_64_intdigest(f"{seed}\0{tensor}\0{model}".encode())


def _kept_and_dropped(numel: int, density: float, gamma: float | None) -> tuple[int, int]:
    """How many of the largest magnitudes are kept or dropped, and how many of these are dropped."""
    if density >= 1 or density <= 0:
        return numel, 0
    if gamma is None:
        return max(1, int(density * numel)), 0
    # If `density` and `gamma` together exceed 1, fewer large ones are dropped.
    kept = int(density * numel)
    small = max(0, numel - kept - int(gamma * numel))
    return numel - small, numel - small - kept


def _check_chances(densities: Sequence[float], epsilons: Sequence[float], spec: TensorSpec) -> None:
    """Raises ConfigError unless all probabilities lie between 0 and 1."""
    for model, density, epsilon in zip(spec.models, densities, epsilons, strict=True):
        # The second is how select.h computes the largest probability.
        highest = max(density + epsilon, (density - epsilon) + 2 * epsilon)
        if 0 < density < 1 and not (density > epsilon and highest < 1):
            tensor = f", tensor {spec.name}" if spec.name else ""
            raise ConfigError(
                f"model {model}{tensor}: density {density:g} with epsilon {epsilon:g}: density - epsilon"
                " and density + epsilon must both lie between 0 and 1; set an epsilon below"
                f" {min(density, 1 - density):g}"
            )


def _row(
    name: str,
    reference: str,
    sparsify: Sparsify,
    *,
    elects: bool,
    normalize: bool = False,
    rescale: bool = False,
) -> Method:
    def rule(values: Values, spec: TensorSpec) -> TaskArithmetic:
        densities = values["density"]
        ranks: tuple[tuple[int, int], ...] = ()
        keys: tuple[int, ...] = ()
        epsilons: tuple[float, ...] = ()
        if sparsify == "nothing":
            densities = (1.0,) * len(densities)
        elif sparsify in ("random", "random by rank"):
            if sparsify == "random by rank":
                epsilons = values["epsilon"]
                _check_chances(densities, epsilons, spec)
            keys = tuple(draw_key(spec.seed, spec.name, model) for model in spec.models)
        else:
            gammas = values.get("gamma", (None,) * len(densities))
            ranks = tuple(
                _kept_and_dropped(spec.numel, d, g) for d, g in zip(densities, gammas, strict=True)
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
            epsilons,
            row=max(spec.row, 1),
        )

    extra = []
    if sparsify == "small and large":
        extra.append(Parameter("gamma", "float", 0.01, low=0.0, high=1.0, per_model=True))
    if sparsify == "random by rank":
        extra.append(Parameter("epsilon", "float", 0.15, low=0.0, per_model=True))
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
        Parameter("int8_mask", "bool", False),  # masks are stored as bits, if at all
        base_alone=True,
    )


TASK_ARITHMETIC = (
    _row("task_arithmetic", "https://arxiv.org/abs/2212.04089", "nothing", elects=False),
    _row("ties", "https://arxiv.org/abs/2306.01708", "small", elects=True, normalize=True),
    _row("dare_ties", "https://arxiv.org/abs/2311.03099", "random", elects=True, rescale=True),
    _row("dare_linear", "https://arxiv.org/abs/2311.03099", "random", elects=False, rescale=True),
    _row("breadcrumbs", "https://arxiv.org/abs/2312.06795", "small and large", elects=False),
    _row("breadcrumbs_ties", "https://arxiv.org/abs/2312.06795", "small and large", elects=True),
    _row(
        "della",
        "https://arxiv.org/abs/2406.11617",
        "random by rank",
        elects=True,
        normalize=True,
        rescale=True,
    ),
    _row(
        "della_linear",
        "https://arxiv.org/abs/2406.11617",
        "random by rank",
        elects=False,
        rescale=True,
    ),
)
