"""How fast merge_tensors, survey and fuse are, beside memcpy and mergekit in the same run.

    python bench/ops.py [--quick] [--no-peer] [--results DIR]

Bytes are counted from the tensors: two reads of every input, one write of the output (18 an element
for three bf16 targets), however many passes were made. Our calls, mergekit's and memcpy take turns,
because the machine's bandwidth may change while this runs; figures are medians.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from machine import Memcpy, describe
from report import SELECT_TOPK, median, parser, peer_merge_tensors, publish, table, timed
from siblings import siblings

from fuseo1_kernels.in_memory.merge import merge_tensors
from fuseo1_kernels.in_memory.ops import fuse, survey
from fuseo1_kernels.methods.sce import sce_params

RMS = (1e-3, 1e-4)
VARIANTS = ("fuseo1", "mergekit")

MergeContext = Callable[[], Any]


@dataclass(frozen=True)
class Figure:
    """One measured call.

    Attributes:
        seconds: the median; `samples` are all of them.
        gb_per_s: the bytes that it must move at the least, by its seconds.
        of_memcpy: that rate as a fraction of memcpy's in the same minute.
        over_mergekit: how many times faster it is than mergekit's merge_tensors; None: not compared.
    """

    rms: float
    select_topk: float
    call: str
    seconds: float
    gb_per_s: float
    of_memcpy: float
    over_mergekit: float | None
    samples: list[float]


def nbytes(*tensors: torch.Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def our_calls(
    tensors: list[torch.Tensor], select_topk: float
) -> dict[str, tuple[MergeContext, int]]:
    """Return our calls by name, each with the bytes that it must move at the least."""
    base, *targets = tensors
    out = torch.zeros_like(base)
    read, written = nbytes(*tensors), nbytes(out)
    surveyed = survey(base, targets, select_topk=select_topk)
    calls: dict[str, tuple[MergeContext, int]] = {}
    for variant in VARIANTS:
        parameters = {"select_topk": select_topk, "variant": variant}
        merge = partial(merge_tensors, tensors, "sce", base_index=0, parameters=parameters)
        calls[f"merge_tensors {variant}"] = merge, 2 * read + written
        calls[f"merge_tensors {variant} out="] = partial(merge, out=out), 2 * read + written
    calls["survey"] = partial(survey, base, targets, select_topk=select_topk), read
    for variant in VARIANTS:
        params = sce_params(surveyed, base.numel(), select_topk, variant)
        fuse_there = partial(fuse, base, targets, params, out=out)
        calls[f"fuse {variant} out="] = fuse_there, read + written
    return calls


def take_turns(
    calls: Mapping[str, MergeContext],
    peer: MergeContext | None,
    memcpy: Memcpy,
    rounds: int,
    repeats: int,
) -> dict[str, list[float]]:
    """Return the seconds of every call, of "mergekit" and of "memcpy", which goes between all others."""
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, call in calls.items():
            taken["memcpy"] += memcpy.seconds(2)
            call()
            taken[name] += [timed(call) for _ in range(repeats)]
        if peer is not None:
            taken["mergekit"].append(timed(peer))
    taken["memcpy"] += memcpy.seconds(2)
    return taken


def measure(
    tensors: list[torch.Tensor],
    rms: float,
    select_topk: float,
    peer_merge: Callable[..., Any] | None,
    rounds: int,
    repeats: int,
) -> list[Figure]:
    """Measure all calls on one set of tensors."""
    peer = None
    if peer_merge is not None:
        parameters = {"select_topk": select_topk}
        peer = partial(peer_merge, tensors, "sce", base_index=0, parameters=parameters)
    calls = our_calls(tensors, select_topk)
    whole = 2 * nbytes(*tensors) + nbytes(tensors[0])
    memcpy = Memcpy(tensors)
    works = {name: work for name, (work, _) in calls.items()}
    taken = take_turns(works, peer, memcpy, rounds, repeats)

    moved = {name: size for name, (_, size) in calls.items()}
    moved |= {"memcpy": memcpy.moved, "mergekit": whole}
    copy_rate = memcpy.moved / median(taken["memcpy"])
    figures = []
    for name, samples in taken.items():
        seconds = median(samples)
        compared = peer is not None and name.startswith("merge_tensors")
        figures.append(
            Figure(
                rms=rms,
                select_topk=select_topk,
                call=name,
                seconds=seconds,
                gb_per_s=moved[name] / seconds / 1e9,
                of_memcpy=moved[name] / seconds / copy_rate,
                over_mergekit=median(taken["mergekit"]) / seconds if compared else None,
                samples=samples,
            )
        )
    return figures


def merges_table(figures: list[Figure]) -> str:
    """merge_tensors, with a new output and with `out=`, beside mergekit's."""
    at = {(f.rms, f.select_topk, f.call): f for f in figures}
    rows = []
    for rms, select_topk in dict.fromkeys((f.rms, f.select_topk) for f in figures):
        peer = at.get((rms, select_topk, "mergekit"))
        for variant in VARIANTS:
            new = at[rms, select_topk, f"merge_tensors {variant}"]
            out = at[rms, select_topk, f"merge_tensors {variant} out="]
            rows.append(
                [
                    *(f"{rms:g}", f"{select_topk:g}", variant),
                    *(f"{f.seconds * 1e3:.1f}" for f in (new, out)),
                    *(f"{f.gb_per_s:.1f}" for f in (new, out)),
                    f"{at[rms, select_topk, 'memcpy'].gb_per_s:.1f}",
                    *(f"{f.of_memcpy:.0%}" for f in (new, out)),
                    *(times(f.over_mergekit) for f in (new, out)),
                    "" if peer is None else f"{peer.seconds * 1e3:.0f}",
                ]
            )
    header = ["rms", "select_topk", "variant", "ms", "ms out=", "GB/s", "GB/s out=", "memcpy GB/s"]
    header += ["of memcpy", "out=", "over mergekit", "out=", "mergekit ms"]
    return table(header, rows)


def ops_table(figures: list[Figure]) -> str:
    """survey and fuse by themselves."""
    rows = [
        [
            f"{f.rms:g}",
            f"{f.select_topk:g}",
            f.call,
            f"{f.seconds * 1e3:.1f}",
            f"{f.gb_per_s:.1f}",
            f"{f.of_memcpy:.0%}",
        ]
        for f in figures
        if f.call.startswith(("survey", "fuse"))
    ]
    return table(["rms", "select_topk", "op", "ms", "GB/s", "of memcpy"], rows)


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.0f}x"


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--side", type=int, help="of the square tensors (default 5120)")
    arguments.add_argument("--rounds", type=int, help="turns of everything (default 5)")
    options = arguments.parse_args()
    side = options.side or (256 if options.quick else 5120)
    rounds = options.rounds or (1 if options.quick else 5)
    repeats = 1 if options.quick else 4
    peer_merge = None if options.no_peer else peer_merge_tensors()

    described = describe()
    figures: list[Figure] = []
    for rms in RMS:
        tensors = siblings((side, side), rms=rms)
        for select_topk in SELECT_TOPK:
            figures += measure(tensors, rms, select_topk, peer_merge, rounds, repeats)
    title = f"merge_tensors, survey, fuse: {side}x{side}, bf16, three targets, sce"
    sections = [merges_table(figures), ops_table(figures)]
    publish(options, described, "ops", title, sections, [asdict(f) for f in figures])


if __name__ == "__main__":
    main()
