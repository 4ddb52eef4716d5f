"""How many elements differ from the correctly rounded float64 result, ours and mergekit's.

    python bench/accuracy.py [--quick] [--no-peer] [--results DIR]

The oracle is SCE's formula in float64 with exactly summed energies, rounded once; its parts come from
tests/support/oracles/sce.py. Which elements are in the top k is a matter of its own: bf16 tensors have many elements
of equal or almost equal variance, and whoever rounds the variance decides differently between them. So
ours is held against two oracles: one selects by the fp32 variance that docs/arithmetic.md defines, the
other by the exact variance. mergekit is asked twice, in the tensors' own bf16 as its users run it, and in
float64, rounded once at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from machine import describe
from report import SELECT_TOPK, parser, peer_merge_tensors, publish, table

from fuseo1_kernels.bench.data import siblings
from fuseo1_kernels.in_memory.merge import merge_tensors

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from support.oracles import sce as sce_oracle

RMS = (1e-3, 1e-4)
VARIANTS = ("fuseo1", "mergekit")


@dataclass(frozen=True)
class Figure:
    """`different` of `elements` elements of `computed` are not the bits of `expected`."""

    rms: float
    select_topk: float
    computed: str
    expected: str
    elements: int
    different: int


def oracles(tensors: list[torch.Tensor], select_topk: float) -> dict[tuple[str, str], torch.Tensor]:
    """Return the correctly rounded result by ("fp32" or "exact" scores, variant)."""
    base, *targets = tensors
    d = [t.double() - base.double() for t in targets]
    all_scores = {"fp32": sce_oracle.fp32_scores(d), "exact": sce_oracle.scores(d)}
    results = {}
    for kind, scores in all_scores.items():
        mask = sce_oracle.top_k(scores.flatten(), select_topk).reshape(base.shape)
        energy = sce_oracle.energies(d, mask)
        for variant in VARIANTS:
            merged = sce_oracle.combine(base.double(), d, mask, energy, variant)
            results[kind, variant] = sce_oracle.rounded(merged, base.dtype)
    return results


def differing(a: torch.Tensor, b: torch.Tensor) -> int:
    """Count the elements of two bf16 tensors whose bits differ, -0 and 0 being different."""
    return int(torch.count_nonzero(a.view(torch.int16) != b.view(torch.int16)))


def compare(
    tensors: list[torch.Tensor], select_topk: float, peer: Callable[..., Any] | None
) -> Iterator[tuple[str, str, int]]:
    """Yield (computed, expected, differing elements) for both variants and for mergekit."""
    expected = oracles(tensors, select_topk)
    # With select_topk 1 there is nothing to choose, and both oracles are the same.
    kinds = ("fp32", "exact") if select_topk < 1.0 else ("exact",)
    for variant in VARIANTS:
        parameters = {"select_topk": select_topk, "variant": variant}
        ours = merge_tensors(tensors, "sce", base_index=0, parameters=parameters)
        for kind in kinds:
            right = expected[kind, variant]
            yield f"ours, {variant}", f"oracle, {kind} scores", differing(ours, right)
    if peer is not None:
        call = {"base_index": 0, "parameters": {"select_topk": select_topk}}
        native = peer(tensors, "sce", **call)
        wide = sce_oracle.rounded(peer(tensors, "sce", dtype=torch.float64, **call), native.dtype)
        right = expected["exact", "mergekit"]
        yield "mergekit in bf16", "mergekit in float64", differing(native, wide)
        yield "mergekit in bf16", "oracle, exact scores", differing(native, right)
        yield "mergekit in float64", "oracle, exact scores", differing(wide, right)


def figures_table(figures: list[Figure]) -> str:
    header = ["rms", "select_topk", "computed", "expected", "differ", "of 100,000"]
    rows = [
        [
            f"{f.rms:g}",
            f"{f.select_topk:g}",
            f.computed,
            f.expected,
            f"{f.different:,}",
            f"{f.different / f.elements * 100_000:,.2f}",
        ]
        for f in figures
    ]
    return table(header, rows)


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--side", type=int, help="of the square tensors (default 5120)")
    options = arguments.parse_args()
    side = options.side or (256 if options.quick else 5120)
    peer = None if options.no_peer else peer_merge_tensors()

    described = describe()
    figures: list[Figure] = []
    for rms in RMS:
        tensors = siblings((side, side), rms=rms)
        for select_topk in SELECT_TOPK:
            figures += (
                Figure(rms, select_topk, computed, expected, side * side, different)
                for computed, expected, different in compare(tensors, select_topk, peer)
            )
    title = f"Elements that are not correctly rounded: {side}x{side}, bf16, three targets, sce"
    data = [asdict(f) for f in figures]
    publish(options, described, "accuracy", title, [figures_table(figures)], data)


if __name__ == "__main__":
    main()
