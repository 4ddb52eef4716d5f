"""How fast survey and fuse are on a GPU, beside a device copy, the backends beside each other, and mergekit.

    python bench/gpu.py [--quick] [--no-peer] [--results DIR]

Figures are medians of times on the device (CUDA events, the host running ahead), over several sets of tensors in turn,
which together exceed the L2 cache. `bench/gpu.sh` builds and tests first.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from gpu_case import Case, MergeContext, on_device
from gpu_report import Figure, Findings, folders, gpu_name, markdown, publish
from machine import commit, versions
from report import median, parser

from fuseo1_kernels import merge_tensors
from fuseo1_kernels.backends.arrays import Array
from fuseo1_kernels.backends.interface import GpuBackend
from fuseo1_kernels.backends.registry import GPU_BACKENDS, load_gpu_backend
from fuseo1_kernels.bench.machine import cpu_model, utc_now
from fuseo1_kernels.errors import BackendError
from fuseo1_kernels.in_memory.ops import as_array

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SMALL, MANY = 5120, 256


def small_launches(gpu: Any, many: int, repeats: int) -> dict[str, float]:
    """Return the microseconds of a launch of one small tensor, and of one of `many`.

    What the one reads is in the L2 cache: a harder yardstick than one that is not.
    """
    case = Case((SMALL * many,))
    taken = {}
    for count in (1, many):
        works: list[MergeContext] = []
        for tensors, out in zip(case.sets, case.outs, strict=True):
            parts = list(zip(*(t.split(SMALL) for t in tensors), strict=True))[:count]
            inputs = [[as_array(t) for t in part] for part in parts]
            outs = [as_array(o) for o in out.split(SMALL)[:count]]
            works.append(small_launch(gpu, inputs, outs))
        taken[f"{count} of {SMALL} elements"] = median(on_device(works, repeats)[0]) * 1e6
    return taken


def small_launch(
    gpu: Any, inputs: Sequence[Sequence[Array]], outs: Sequence[Array]
) -> MergeContext:
    """Return the launch by itself, its table of tensors made before."""
    table = gpu.enqueue_small(inputs, outs, 0.5, "mergekit")

    def launch() -> None:
        gpu._kernels.merge_small(
            table.params.data_ptr(),
            len(inputs),
            table.targets,
            0.5,
            True,
            table.result.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )

    return launch


def backends(notes: list[str]) -> list[GpuBackend]:
    """Return those that run here; of the others, note why not."""
    running = []
    for name in GPU_BACKENDS:
        try:
            running.append(load_gpu_backend(name))
        except BackendError as error:
            notes.append(f"{name}: {error}")
    return running


def peer(found: Findings, wanted: bool) -> Callable[..., Any] | None:
    try:
        api = importlib.import_module("mergekit.merge_methods.api") if wanted else None
    except ImportError as error:
        found.notes.append(f"mergekit: not installed here ({error})")
        return None
    return api.merge_tensors if api else None


def measure(found: Findings, options: argparse.Namespace, publish_so_far: MergeContext) -> None:
    """Fill `found`, and publish it after every case: what comes next may not end in time."""
    shape, repeats = found.shape, 3 if options.quick else 30
    running, merge = backends(found.notes), peer(found, not options.no_peer)
    every = [(1.0, "fuseo1"), *((t, v) for t in (0.5, 0.1) for v in ("fuseo1", "mergekit"))]
    fewer = [(1.0, "fuseo1"), (0.5, "mergekit"), (0.1, "mergekit")]
    cases = [
        (partial(Case, shape), every),
        *((partial(Case, shape, targets), fewer) for targets in (1, 2, 7, 15)),
        *((partial(Case, shape, dtypes=d), fewer) for d in ((FP16,), (FP32,), (BF16, FP16, FP32))),
        (partial(Case, shape, rms=1e-4), every),
    ]
    case = cases[0][0]()
    for (select_topk, variant), gpu in itertools.product(every, running):
        found.figures += case.figures(gpu, select_topk, variant, repeats)
    for gpu in running:
        found.extra_memory[gpu.name] = case.extra_memory(gpu.name)
        if hasattr(gpu, "enqueue_small"):
            found.small_us = small_launches(gpu, MANY, repeats)
            one, many = found.small_us.values()
            found.small_ratio = many / one
    publish_so_far()
    found.figures += by_clock(case, running, merge, every, repeats)
    del case
    # One backend after the other: Triton's kernels are compiled for every case, which may take all of the time.
    for gpu, (make, ways) in itertools.product(running, cases[1:]):
        publish_so_far()
        torch.cuda.empty_cache()
        other = make()
        for select_topk, variant in ways:
            found.figures += other.figures(gpu, select_topk, variant, repeats)
        del other
    publish_so_far()


def by_clock(
    case: Case,
    running: Sequence[GpuBackend],
    mergekit: Callable[..., Any] | None,
    ways: Sequence[tuple[float, str]],
    repeats: int,
) -> list[Figure]:
    """Return merge_tensors of every backend, and mergekit's, as a caller sees them."""
    made = []
    for topk, variant in ways:
        ours = {"select_topk": topk, "variant": variant}
        for gpu in running:
            merge: Any = partial(merge_tensors, parameters=ours, backend=gpu.name)
            made.append(case.by_clock("merge_tensors", gpu.name, merge, topk, variant, repeats))
    for topk in dict.fromkeys(topk for topk, _ in ways):
        if mergekit is None:
            break
        merge = partial(mergekit, parameters={"select_topk": topk})
        made.append(case.by_clock("mergekit", "mergekit", merge, topk, "mergekit", repeats))
    return made


def machine() -> dict[str, str]:
    return {
        **gpu_name(),
        "gpu": torch.cuda.get_device_name(),
        "CUDA": str(torch.version.cuda),
        **versions(),
        "processor": cpu_model(),
        "commit": commit(),
        "date": utc_now(),
        "command": shlex.join(["python", *sys.argv]),
    }


def main() -> None:
    options = parser(__doc__.splitlines()[0]).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench/gpu.py: torch finds no GPU here; nothing was measured")
    described = machine()
    found = Findings([64, 1280] if options.quick else [5120, 27648])
    where = folders(options.results, options.quick)
    measure(found, options, lambda: publish(where, described, [], found))
    print(markdown(described, [], found))
    if not any(f.backend == "cuda" for f in found.figures):
        raise SystemExit(f"bench/gpu.py: {'; '.join(found.notes)}")


if __name__ == "__main__":
    main()
