"""How fast merge_tensors is by the other methods, beside memcpy and mergekit in the same run.

    python bench/methods.py [--quick] [--no-peer] [--results DIR] [--data gauss|coarse:SHARE|FILES ...]

Bytes are counted as if every input were read twice and the output written once (18 an element for three bf16 targets
and a base), whether a method needs both reads or one. Our calls, mergekit's and memcpy take turns, because the
machine's bandwidth may change while this runs; figures are medians. mergekit is measured on Gaussian data alone: what
the tensors hold is nothing to it.

How many elements differ is counted against float64, from the formulas of `support.oracles.general`, rounded once, given
the same masks and the same numbers learned of the whole (norms, angles).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from goals import Goal, at_least, verdict
from machine import describe
from report import (
    COARSE,
    add_data,
    data_of,
    median,
    parser,
    peer_merge_tensors,
    publish,
    table,
)

from fuseo1_kernels import FuseParams, survey
from fuseo1_kernels.backends.contract import Clamp
from fuseo1_kernels.backends.reference.select import selected
from fuseo1_kernels.bench.calls import calls_of
from fuseo1_kernels.bench.cases import Case
from fuseo1_kernels.bench.timing import MEMCPY, Memcpy, Work, take_turn, timed

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from support.oracles import general as general_oracle
from support.oracles import sce as sce_oracle

DATA = ("gauss:0.001", *COARSE)


@dataclass(frozen=True)
class Asked:
    """A method with parameters, of so many models, and what was asked of it."""

    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    targets: int = 3
    of_memcpy: float | None = None
    over_mergekit: float | None = None

    @property
    def name(self) -> str:
        values = [f"{k} {v:g}" for k, v in self.parameters.items() if k != "weight"]
        return " ".join([self.method, *values])

    def case(self, side: int, data: str) -> Case:
        """The merge of square tensors."""
        return Case(self.method, self.parameters, (side, side), targets=self.targets, data=data)


CASES = (
    Asked("ties", {"weight": 1.0, "density": 0.2}, of_memcpy=0.45, over_mergekit=150),
    Asked(
        "breadcrumbs",
        {"weight": 1.0, "density": 0.9, "gamma": 0.01},
        of_memcpy=0.45,
        over_mergekit=150,
    ),
    Asked("dare_ties", {"weight": 1.0, "density": 0.2}, of_memcpy=0.45, over_mergekit=50),
    Asked("dare_linear", {"weight": 1.0, "density": 0.2}, of_memcpy=0.45, over_mergekit=50),
    Asked("della", {"weight": 1.0, "density": 0.5, "epsilon": 0.1}, over_mergekit=60),
    Asked("task_arithmetic", {"weight": 0.4}, of_memcpy=0.6, over_mergekit=10),
    Asked("linear", {"weight": 1.0}, targets=4, of_memcpy=0.6, over_mergekit=10),
    Asked("slerp", {"t": 0.3}, targets=1),
    Asked("nuslerp", {"weight": 1.0}, targets=2),
    Asked("multislerp", {"weight": 1.0}),
    Asked("model_stock"),
    Asked("karcher", targets=4),
    Asked("nearswap", {"t": 1e-3}, targets=1),
    Asked("ramplus_tl", {"epsilon": 1e-3}),
)


@dataclass(frozen=True)
class Figure:
    """One measured case; seconds are medians, of `samples` ours and of mergekit's, if it was asked.

    Attributes:
        data: what the tensors hold, as Case has it.
        seconds_out: with `out=` given.
        of_memcpy: the bytes that two reads and a write move by our seconds, as a fraction of memcpy's rate.
        different: elements that are not float64's, rounded, of 100,000.
    """

    case: str
    data: str
    seconds: float
    seconds_out: float
    of_memcpy: float
    of_memcpy_out: float
    memcpy_gb_per_s: float
    mergekit_seconds: float | None
    different: float
    samples: dict[str, list[float]]

    @property
    def over_mergekit(self) -> float | None:
        return None if self.mergekit_seconds is None else self.mergekit_seconds / self.seconds


def measure(
    asked: Asked, data: str, side: int, peer: Callable[..., Any] | None, rounds: int
) -> Figure:
    case = asked.case(side, data)
    tensors = case.make_tensors()
    out = torch.empty_like(tensors[0])
    calls = calls_of(case, tensors, out)
    works: dict[Hashable, Work] = {
        "ours": calls["merge"].work,
        "ours out=": calls["merge out="].work,
    }
    memcpy = Memcpy(tensors)
    taken: dict[Hashable, list[float]] = {}
    for _ in range(rounds):
        take_turn(taken, works, memcpy)
        if peer is not None:
            base = {"base_index": 0} if case.has_base else {}
            theirs = partial(peer, tensors, case.method, parameters=case.parameters, **base)
            taken.setdefault("mergekit", []).append(timed(theirs))
    rate = memcpy.nbytes / median(taken[MEMCPY])
    moved = 2 * case.read_bytes + case.tensor_bytes
    seconds, seconds_out = median(taken["ours"]), median(taken["ours out="])
    return Figure(
        case=asked.name,
        data=data,
        seconds=seconds,
        seconds_out=seconds_out,
        of_memcpy=moved / seconds / rate,
        of_memcpy_out=moved / seconds_out / rate,
        memcpy_gb_per_s=rate / 1e9,
        mergekit_seconds=median(taken["mergekit"]) if peer is not None else None,
        different=differing(case, tensors, out) / out.numel() * 100_000,
        samples={str(name): seconds for name, seconds in taken.items()},
    )


def differing(case: Case, tensors: list[torch.Tensor], merged: torch.Tensor) -> int:
    """Count the elements of `merged` that are not those of the formula in float64."""
    base, *targets = (t.flatten() for t in tensors)
    rule = case.rule
    learned: list[Any] = []
    while (request := rule.request(learned)) is not None:
        learned.append(survey(base, targets, request=request))
    params = rule.params(learned)
    exact = base.double()
    z = [taking_part(params, i, x.float() - base.float()) for i, x in enumerate(targets)]
    right = general_oracle.merge(
        exact,
        z,
        params.weights,
        params.elect,
        shares=params.shares,
        alone=params.alone,
        divisor=params.divisor,
        scale=params.scale,
        base_scale=params.base_scale,
    )
    bits = (
        merged.flatten().view(torch.int16),
        sce_oracle.rounded(right, merged.dtype).view(torch.int16),
    )
    return int(torch.count_nonzero(bits[0] != bits[1]))


def taking_part(params: FuseParams, i: int, d: torch.Tensor) -> torch.Tensor:
    """The selected part of task vector `i`, in float64."""
    select = params.selects[i] if params.selects else None
    if isinstance(select, Clamp):
        return d.double().clamp(-select.most, select.most)
    return torch.where(selected(select, d, 0), d.double(), 0.0)


def figures_table(figures: list[Figure]) -> str:
    rows = [
        [
            f.case,
            f.data,
            f"{f.seconds * 1e3:.1f}",
            f"{f.seconds_out * 1e3:.1f}",
            f"{f.of_memcpy:.0%}",
            f"{f.of_memcpy_out:.0%}",
            f"{f.memcpy_gb_per_s:.1f}",
            "" if f.over_mergekit is None else f"{f.over_mergekit:.0f}x",
            "" if f.mergekit_seconds is None else f"{f.mergekit_seconds * 1e3:.0f}",
            f"{f.different:.2f}",
        ]
        for f in figures
    ]
    header = ["method", "data", "ms", "ms out=", "of memcpy", "out=", "memcpy GB/s"]
    return table([*header, "over mergekit", "mergekit ms", "differ of 100,000"], rows)


def goals_table(cases: tuple[Asked, ...], figures: list[Figure]) -> str:
    """The goals, which were set for Gaussian data."""
    goals: list[Goal] = []
    of = {f.case: f for f in figures if f.data == DATA[0]}
    for case in cases:
        if (figure := of.get(case.name)) is None:
            continue
        if case.of_memcpy is not None:
            goals.append(at_least(f"{case.name}, of memcpy", case.of_memcpy, figure.of_memcpy, "%"))
        if case.over_mergekit is not None:
            wanted = case.over_mergekit
            goals.append(at_least(f"{case.name}, over mergekit", wanted, figure.over_mergekit, "x"))
    most = max(f.different for f in figures)
    goals.append(Goal("elements that differ, of 100,000", "< 5", f"{most:.2f}", most < 5))
    rows = [[g.what, g.goal, g.reached, verdict(g.met)] for g in goals]
    return table(["what", "goal", "reached", "met"], rows)


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--side", type=int, help="of the square tensors (default 5120)")
    arguments.add_argument("--rounds", type=int, help="turns of everything (default 3)")
    arguments.add_argument("--only", nargs="+", metavar="METHOD", help="these methods alone")
    add_data(arguments, DATA)
    options = arguments.parse_args()
    side = options.side or (256 if options.quick else 5120)
    rounds = options.rounds or (1 if options.quick else 3)
    peer = None if options.no_peer else peer_merge_tensors()
    cases = tuple(c for c in CASES if not options.only or c.method in options.only)

    described = describe()
    figures = [
        measure(case, data, side, peer if data.startswith("gauss") else None, rounds)
        for case in cases
        for data in data_of(options, DATA)
    ]
    title = f"merge_tensors by every method: {side}x{side}, bf16"
    sections = [figures_table(figures), goals_table(cases, figures)]
    publish(options, described, "methods", title, sections, [asdict(f) for f in figures])


if __name__ == "__main__":
    main()
