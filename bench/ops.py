"""How fast merge_tensors, survey and fuse are, beside memcpy and mergekit in the same run.

    python bench/ops.py [--quick] [--no-peer] [--results DIR] [--data gauss|coarse:SHARE|FILES ...]

Bytes are counted from the tensors: two reads of every input, one write of the output (18 an element
for three bf16 targets), however many passes were made. Our calls, mergekit's and memcpy take turns,
because the machine's bandwidth may change while this runs; figures are medians. mergekit is measured on Gaussian data
alone: what the tensors hold is nothing to it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from machine import describe
from report import (
    COARSE,
    SELECT_TOPK,
    add_data,
    data_of,
    median,
    parser,
    peer_merge_tensors,
    publish,
    table,
)

from fuseo1_kernels.bench.calls import Call, calls_of
from fuseo1_kernels.bench.cases import Case
from fuseo1_kernels.bench.timing import MEMCPY, Memcpy, Work, take_turn, timed

DATA = ("gauss:0.001", "gauss:0.0001", *COARSE)
VARIANTS = ("fuseo1", "mergekit")


@dataclass(frozen=True)
class Figure:
    """One measured call.

    Attributes:
        data: what the tensors hold, as Case has it.
        seconds: the median; `samples` are all of them.
        gb_per_s: the bytes that it must move at the least, by its seconds.
        of_memcpy: that rate as a fraction of memcpy's in the same minute.
        over_mergekit: how many times faster it is than mergekit's merge_tensors; None: not compared.
    """

    data: str
    select_topk: float
    call: str
    seconds: float
    gb_per_s: float
    of_memcpy: float
    over_mergekit: float | None
    samples: list[float]


def our_calls(case: Case, tensors: list[torch.Tensor]) -> dict[str, Call]:
    """Return our calls by name, by both variants of `case`."""
    out = torch.zeros_like(tensors[0])
    calls: dict[str, Call] = {}
    for variant in VARIANTS:
        of = replace(case, parameters={**case.parameters, "variant": variant})
        made = calls_of(of, tensors, out, passes=True)
        calls[f"merge_tensors {variant}"] = made["merge"]
        calls[f"merge_tensors {variant} out="] = made["merge out="]
        calls["survey"] = made["survey 1"]
        calls[f"fuse {variant} out="] = made["fuse out="]
    return calls


def measure(
    case: Case,
    tensors: list[torch.Tensor],
    peer_merge: Callable[..., Any] | None,
    rounds: int,
    repeats: int,
) -> list[Figure]:
    """Measure all calls on one set of tensors."""
    calls = our_calls(case, tensors)
    works: dict[Hashable, Work] = {name: call.work for name, call in calls.items()}
    memcpy = Memcpy(tensors)
    taken: dict[Hashable, list[float]] = {}
    for _ in range(rounds):
        take_turn(taken, works, memcpy, repeats)
        if peer_merge is not None:
            peer = partial(peer_merge, tensors, case.method, base_index=0)
            seconds = timed(partial(peer, parameters=case.parameters))
            taken.setdefault("mergekit", []).append(seconds)

    moved = {name: call.nbytes for name, call in calls.items()}
    moved |= {MEMCPY: memcpy.nbytes, "mergekit": case.merge_bytes}
    copy_rate = memcpy.nbytes / median(taken[MEMCPY])
    figures = []
    for name, size in moved.items():
        if name not in taken:
            continue
        samples = taken[name]
        seconds = median(samples)
        compared = "mergekit" in taken and name.startswith("merge_tensors")
        figures.append(
            Figure(
                data=case.data,
                select_topk=case.parameters["select_topk"],
                call=name,
                seconds=seconds,
                gb_per_s=size / seconds / 1e9,
                of_memcpy=size / seconds / copy_rate,
                over_mergekit=median(taken["mergekit"]) / seconds if compared else None,
                samples=samples,
            )
        )
    return figures


def merges_table(figures: list[Figure]) -> str:
    """merge_tensors, with a new output and with `out=`, beside mergekit's."""
    at = {(f.data, f.select_topk, f.call): f for f in figures}
    rows = []
    for data, select_topk in dict.fromkeys((f.data, f.select_topk) for f in figures):
        peer = at.get((data, select_topk, "mergekit"))
        for variant in VARIANTS:
            new = at[data, select_topk, f"merge_tensors {variant}"]
            out = at[data, select_topk, f"merge_tensors {variant} out="]
            rows.append(
                [
                    *(data, f"{select_topk:g}", variant),
                    *(f"{f.seconds * 1e3:.1f}" for f in (new, out)),
                    *(f"{f.gb_per_s:.1f}" for f in (new, out)),
                    f"{at[data, select_topk, 'memcpy'].gb_per_s:.1f}",
                    *(f"{f.of_memcpy:.0%}" for f in (new, out)),
                    *(times(f.over_mergekit) for f in (new, out)),
                    "" if peer is None else f"{peer.seconds * 1e3:.0f}",
                ]
            )
    header = ["data", "select_topk", "variant", "ms", "ms out=", "GB/s", "GB/s out=", "memcpy GB/s"]
    header += ["of memcpy", "out=", "over mergekit", "out=", "mergekit ms"]
    return table(header, rows)


def ops_table(figures: list[Figure]) -> str:
    """survey and fuse by themselves."""
    rows = [
        [
            f.data,
            f"{f.select_topk:g}",
            f.call,
            f"{f.seconds * 1e3:.1f}",
            f"{f.gb_per_s:.1f}",
            f"{f.of_memcpy:.0%}",
        ]
        for f in figures
        if f.call.startswith(("survey", "fuse"))
    ]
    return table(["data", "select_topk", "op", "ms", "GB/s", "of memcpy"], rows)


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.0f}x"


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--side", type=int, help="of the square tensors (default 5120)")
    arguments.add_argument("--rounds", type=int, help="turns of everything (default 5)")
    add_data(arguments, DATA)
    options = arguments.parse_args()
    side = options.side or (256 if options.quick else 5120)
    rounds = options.rounds or (1 if options.quick else 5)
    repeats = 1 if options.quick else 4
    peer_merge = None if options.no_peer else peer_merge_tensors()

    described = describe()
    figures: list[Figure] = []
    for data in data_of(options, DATA):
        case = Case("sce", {}, (side, side), data=data)
        peer = peer_merge if data.startswith("gauss") else None
        tensors = case.make_tensors()
        for select_topk in SELECT_TOPK:
            of = replace(case, parameters={"select_topk": select_topk})
            figures += measure(of, tensors, peer, rounds, repeats)
    title = f"merge_tensors, survey, fuse: {side}x{side}, bf16, three targets, sce"
    sections = [merges_table(figures), ops_table(figures)]
    publish(options, described, "ops", title, sections, [asdict(f) for f in figures])


if __name__ == "__main__":
    main()
