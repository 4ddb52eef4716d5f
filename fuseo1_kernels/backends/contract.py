"""Requests of surveys and parameters of fuse, as csrc/include/fuseo1/{survey,select,fuse}.h define them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ..errors import BackendError
from .arrays import Array, Numbers

_BLOCK = 256

#: A threshold that no score and no magnitude reaches: nothing is selected.
NOTHING = 0x7FFFFFFF


@dataclass(frozen=True)
class Cut:
    """The elements whose |d| has bits above `threshold`, or equal to it at an index of at most `tie_limit`."""

    threshold: int
    tie_limit: int


#: Everything but zeros, whose selection makes no difference.
ALL = Cut(0, -1)
#: Nothing.
NONE = Cut(NOTHING, -1)


@dataclass(frozen=True)
class RowFactors:
    """Factors of at least 0 for |d|: one for each `row` consecutive elements.

    `factors` are fp32 numbers in the machine's byte order.
    """

    row: int
    factors: bytes

    @property
    def numel(self) -> int:
        """The number of elements that have factors."""
        return self.row * (len(self.factors) // 4)


@dataclass(frozen=True)
class Band:
    """The elements of one target in `keep` and not in `drop`, by |d| or by |d| times `rows`' factors."""

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
    """Elements drawn at random, with probability `low` for a row's smallest |d| up to `low` + `span` for its largest.

    A row is `row` consecutive elements; chunks must have whole rows (`step_of`).
    """

    key: int
    low: float
    span: float
    row: int


@dataclass(frozen=True)
class Clamp:
    """Every element, with its difference to the base clamped to +-`most`."""

    most: float


#: The elements of one target that take part; None: all.
Select: TypeAlias = Band | Draw | Ranked | Clamp | None


def step_of(selects: Sequence[Select]) -> int:
    """The unit of chunks, in elements: whole blocks of 256 and whole rows. Chunks begin at multiples of it."""
    return math.lcm(_BLOCK, *(select.row for select in selects if isinstance(select, Ranked)))


def check_rows(selects: Sequence[Select], numel: int) -> None:
    """Raises BackendError if a selection has factors for fewer than `numel` elements."""
    for select in selects:
        if isinstance(select, Band) and select.rows is not None and select.rows.numel < numel:
            raise BackendError(
                f"factors for {select.rows.numel} elements, but there are {numel} or more"
            )


@dataclass(frozen=True)
class Kept:
    """The drawn mask of one target: bit f, from `address` on, is set if its selection has element f.

    `owner` keeps the memory alive, unless it was lent: then another survey may overwrite it.
    """

    address: int
    owner: Any = None


#: How an element's sign is elected: by the sum of d (SCE), by the sum of w * d, by counting signs, or not at all.
Elect: TypeAlias = Literal["sum", "weighted", "count", "none"]


@dataclass(frozen=True)
class Magnitudes:
    """Asks for the cuts after the ranks[i] largest |d| of target i; every target has the same number of ranks.

    With `rows`, |d| is multiplied by their factors.
    """

    ranks: tuple[tuple[int, ...], ...]
    rows: RowFactors | None = None


@dataclass(frozen=True)
class Norms:
    """Asks for each target's sum of |d|, over all elements and over those of its selection."""

    selects: tuple[Select, ...]


@dataclass(frozen=True)
class Overlaps:
    """Asks how many elements of its selection each target has together with others', and how many alone.

    A target has no element in which it is equal to the base.
    """

    selects: tuple[Select, ...]


@dataclass(frozen=True)
class Gram:
    """Asks for the inner products of all task vectors or, with `of_inputs`, of base and targets."""

    of_inputs: bool = False


@dataclass(frozen=True)
class Divergences:
    """Asks for the divergence of each row of `row` elements of the one target from the base's.

    Attributes:
        cuts: how many cuts the rule requests next; used only to budget memory.
    """

    row: int
    cuts: int = 0


#: The request of a survey; a number is SCE's select_topk.
Request: TypeAlias = float | Magnitudes | Norms | Overlaps | Gram | Divergences


def kept_bytes(request: Request, numel: int) -> int:
    """Bytes of all masks that a survey may draw and keep."""
    selects = request.selects if isinstance(request, Norms) else ()
    drawn = sum(isinstance(select, Draw | Ranked) for select in selects)
    return drawn * -(-numel // _BLOCK) * (_BLOCK // 8)


@dataclass(frozen=True)
class DecodeParams:
    """How codes of 8 bits are decoded (csrc/include/fuseo1/decode.h).

    Attributes:
        code: "F8_E4M3" or "F8_E5M2".
        columns: of the matrix.
        block: rows and columns of a block.
        scales: fp32, one for each block, row-major.
    """

    code: str
    columns: int
    block: tuple[int, int]
    scales: Array


@dataclass(frozen=True)
class FuseParams:
    """How `fuse` selects, elects, weighs and scales. The defaults are SCE's.

    SCE's election, "sum", is done in fp32; everything else in fp64. Numbers are finite; by others the backends' results
    may differ.

    Attributes:
        weights: w, one per target.
        floor_divisor: the least divisor, or 0.
        masked: whether an element must be selected by its score.
        threshold, tie_limit: the cut of the selected scores.
        elect: how signs are elected.
        divisor: None: the sum of the survivors' shares.
        shares: each target's share in the divisor; None: the weights.
        alone: by target, a factor of its term in elements where it alone survives; None: 1 each.
        scale, base_scale: factors of the merged task vector and of the base.
        selects: one per target; empty: everything is selected.
        kept: one per target, or empty: the masks that a survey of the same backend drew for `selects`; lets fuse skip
            redrawing them.
    """

    weights: tuple[float, ...]
    floor_divisor: float = 0.0
    masked: bool = False
    threshold: int = 0
    tie_limit: int = -1
    elect: Elect = "sum"
    divisor: float | None = None
    shares: tuple[float, ...] | None = None
    alone: tuple[float, ...] | None = None
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


@dataclass(frozen=True)
class FoldParams:
    """Parameters of W + scale * left right, as csrc/include/fuseo1/fold.h defines it.

    Attributes:
        columns, rank: of W, and of left and right.
        left: fp32, rows x rank, from the first row on that is asked for.
        right: fp32, rank x columns.
        scale: the factor of the product.
        by_row: whether factors belong to rows, from that first row on, or to columns.
        factors: DoRA's; None: none.
    """

    columns: int
    rank: int
    left: Array
    right: Array
    scale: float
    by_row: bool = True
    factors: Numbers | None = None


@dataclass(frozen=True)
class AverageParams:
    """How `average` weighs some of a mean's inputs, in order. All numbers are finite.

    Attributes:
        weights: one per input of the call.
        divisor: what the sum of all inputs is divided by; not 0.
        first, last: whether these are the mean's first inputs, and whether they are its last.
    """

    weights: tuple[float, ...]
    divisor: float
    first: bool = True
    last: bool = True


#: Default bound on a survey's own memory, in bytes.
SURVEY_BYTES = 128 << 20


#: The most targets of one merge (FUSEO1_MAX_TARGETS).
MAX_TARGETS = 64

#: The most inputs of one call of average (FUSEO1_MAX_AVERAGED).
MAX_AVERAGED = MAX_TARGETS + 1
