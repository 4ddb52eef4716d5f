"""What surveys are asked and what fuse is told: csrc/include/fuseo1/{survey,select,fuse}.h define it all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ..errors import BackendError

_BLOCK = 256

#: No score and no magnitude reaches it: nothing is selected.
NOTHING = 0x7FFFFFFF


@dataclass(frozen=True)
class Cut:
    """The elements whose |d| has bits above `threshold`, or equal to it at an index of at most `tie_limit`."""

    threshold: int
    tie_limit: int


#: Everything but zeros, whose selection makes no difference; and nothing.
ALL = Cut(0, -1)
NONE = Cut(NOTHING, -1)


@dataclass(frozen=True)
class RowFactors:
    """What |d| is multiplied by: a factor of at least 0 for each `row` elements that follow one another.

    `factors` are fp32, one after the other in the machine's byte order.
    """

    row: int
    factors: bytes

    @property
    def numel(self) -> int:
        """How many elements there are factors for."""
        return self.row * (len(self.factors) // 4)


@dataclass(frozen=True)
class Band:
    """Of one target the elements in `keep` and not in `drop`, by |d| or by |d| times `rows`' factors."""

    keep: Cut = ALL
    drop: Cut = NONE
    rows: RowFactors | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Draw:
    """Elements drawn at random, each with probability limit / 2**32, by a 64-bit key."""

    key: int
    limit: int


@dataclass(frozen=True)
class Ranked:
    """Elements drawn at random, from `low` for the smallest |d| of a row to `low` + `span` for the largest.

    A row are `row` elements that follow one another; whoever works in chunks works in whole rows (`step_of`).
    """

    key: int
    low: float
    span: float
    row: int


@dataclass(frozen=True)
class Clamp:
    """Every element, but its difference to the base only within +-`most`."""

    most: float


#: Which elements of one target take part; None: all.
Select: TypeAlias = Band | Draw | Ranked | Clamp | None


def step_of(selects: Sequence[Select]) -> int:
    """Chunks begin at multiples of so many elements: they are whole blocks of 256 and whole rows."""
    return math.lcm(_BLOCK, *(select.row for select in selects if isinstance(select, Ranked)))


def check_rows(selects: Sequence[Select], numel: int) -> None:
    """Raises BackendError unless there are factors, where there are any, for `numel` elements."""
    for select in selects:
        if isinstance(select, Band) and select.rows is not None and select.rows.numel < numel:
            raise BackendError(
                f"factors for {select.rows.numel} elements, but there are {numel} or more"
            )


@dataclass(frozen=True)
class Kept:
    """What chance has decided of one target: bit f, from `address` on, is set if its selection has element f.

    `owner` keeps the memory, unless it was lent: then another survey may write there.
    """

    address: int
    owner: Any = None


#: How the sign of an element is elected: of the sum of d (SCE), of w * d, by counting heads, or not at all.
Elect: TypeAlias = Literal["sum", "weighted", "count", "none"]


@dataclass(frozen=True)
class Magnitudes:
    """Asks for the cuts after the ranks[i] largest |d| of target i; every target has as many ranks.

    With `rows` |d| is multiplied by their factors.
    """

    ranks: tuple[tuple[int, ...], ...]
    rows: RowFactors | None = None


@dataclass(frozen=True)
class Norms:
    """Asks for each target's sum of |d|, over all elements and over those of its selection."""

    selects: tuple[Select, ...]


@dataclass(frozen=True)
class Gram:
    """Asks for the inner products of all task vectors with each other, or, `of_inputs`, of base and targets."""

    of_inputs: bool = False


@dataclass(frozen=True)
class Divergences:
    """Asks how far each row of `row` elements of the one target is from the base's.

    Attributes:
        cuts: how many cuts a rule will ask for next, of which who plans memory wants to know.
    """

    row: int
    cuts: int = 0


#: What a survey is to learn; a number is SCE's select_topk.
Request: TypeAlias = float | Magnitudes | Norms | Gram | Divergences


def kept_bytes(request: Request, numel: int) -> int:
    """The memory for all that a survey may keep of what chance decides."""
    selects = request.selects if isinstance(request, Norms) else ()
    chance = sum(isinstance(select, Draw | Ranked) for select in selects)
    return chance * -(-numel // _BLOCK) * (_BLOCK // 8)


@dataclass(frozen=True)
class FuseParams:
    """How `fuse` selects, elects, weighs and scales. The defaults are SCE's.

    SCE's election, "sum", is done in fp32, to which its numbers are rounded first; all others in fp64.

    Attributes:
        weights: w, one a target.
        floor_divisor: the least divisor, or 0.
        masked, threshold, tie_limit: whether an element must be selected by its score, and how.
        elect: how signs are elected.
        divisor: None: the sum of the survivors' shares.
        shares: what each target counts for in the divisor; None: the weights.
        scale, base_scale: factors of the merged task vector and of the base.
        selects: one a target; empty: everything is selected.
        kept: one a target, or empty: what a survey of the same backend has decided of `selects`, for those who would
            rather not decide it again.
    """

    weights: tuple[float, ...]
    floor_divisor: float = 0.0
    masked: bool = False
    threshold: int = 0
    tie_limit: int = -1
    elect: Elect = "sum"
    divisor: float | None = None
    shares: tuple[float, ...] | None = None
    scale: float = 1.0
    base_scale: float = 1.0
    selects: tuple[Select, ...] = ()
    kept: tuple[Kept | None, ...] = ()

    @property
    def is_sce(self) -> bool:
        """Whether only weights, floor and the mask by score differ from the defaults."""
        plain = FuseParams(
            self.weights, self.floor_divisor, self.masked, self.threshold, self.tie_limit
        )
        return self == plain


#: Default bound on what a survey keeps in memory, bytes.
SURVEY_BYTES = 128 << 20


#: Most targets of one merge (FUSEO1_MAX_TARGETS).
MAX_TARGETS = 64
