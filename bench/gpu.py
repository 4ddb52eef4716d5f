"""How fast a backend's survey and fuse are on a GPU, beside a device copy and, the first one's, beside mergekit.

    python bench/gpu.py [--backend cuda|triton] [--quick] [--no-peer] [--results DIR]

Figures are medians of times on the device (CUDA events, the host running ahead), over several sets of tensors in turn,
which together exceed the L2 cache. `bench/gpu.sh` builds and tests first, and gives each backend a process of its own.
"""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
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


Step = tuple[str, Callable[[], object]]
_EVERY = [(1.0, "fuseo1"), *((t, v) for t in (0.5, 0.1) for v in ("fuseo1", "mergekit"))]
_FEWER = [(1.0, "fuseo1"), (0.5, "mergekit"), (0.1, "mergekit")]


def steps(found: Findings, gpu: GpuBackend, quick: bool, with_peer: bool) -> Iterator[Step]:
    """Yield what is measured next, and how; what matters most comes first."""
    shape, repeats = found.shape, 3 if quick else 30
    merge = peer(found, with_peer)

    def add(case: Case, select_topk: float, variant: str) -> None:
        found.figures += case.figures(gpu, select_topk, variant, repeats)

    def whole(case: Case) -> None:
        found.extra_memory[gpu.name] = case.extra_memory(gpu.name)
        if hasattr(gpu, "enqueue_small"):
            found.small_us = small_launches(gpu, MANY, repeats)
            one, many = found.small_us.values()
            found.small_ratio = many / one

    def clock(case: Case) -> None:
        found.figures += by_clock(case, gpu, merge, _EVERY, repeats)

    case = Case(shape)
    for way in _EVERY:
        yield f"3 targets, select_topk {way[0]:g}, {way[1]}", partial(add, case, *way)
    yield "memory and small tensors", partial(whole, case)
    yield "merge_tensors", partial(clock, case)
    del case

    def other(make: Callable[[], Case], ways: Sequence[tuple[float, str]]) -> None:
        torch.cuda.empty_cache()
        made = make()
        for way in ways:
            add(made, *way)

    for targets in (1, 2, 7, 15):
        yield f"{targets} targets", partial(other, partial(Case, shape, targets), _FEWER)
    for dtypes in ((FP16,), (FP32,), (BF16, FP16, FP32)):
        yield f"{dtypes}", partial(other, partial(Case, shape, dtypes=dtypes), _FEWER)
    yield "rms 1e-4", partial(other, partial(Case, shape, rms=1e-4), _EVERY)


def measure(found: Findings, steps: Iterable[Step], publish_so_far: MergeContext) -> list[str]:
    """Take the steps, and publish after each: what comes next may fail, or not end in time.

    Returns what failed; it is noted too.
    """
    failed = []
    for what, step in steps:
        try:
            step()
        except Exception as error:  # whatever a compiler or a driver raises
            said = (str(error).splitlines() or [type(error).__name__])[0]
            failed.append(f"{what}: {said}")
            found.notes.append(failed[-1])
        publish_so_far()
    return failed


def by_clock(
    case: Case,
    gpu: GpuBackend,
    mergekit: Callable[..., Any] | None,
    ways: Sequence[tuple[float, str]],
    repeats: int,
) -> list[Figure]:
    """Return the backend's merge_tensors, and mergekit's, as a caller sees them."""
    made = []
    for topk, variant in ways:
        ours = {"select_topk": topk, "variant": variant}
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
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--backend", choices=GPU_BACKENDS, default=GPU_BACKENDS[0])
    options = arguments.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench/gpu.py: torch finds no GPU here; nothing was measured")
    try:
        gpu = load_gpu_backend(options.backend)
    except BackendError as error:
        raise SystemExit(f"bench/gpu.py: {error}") from error
    described = machine()
    found = Findings([64, 1280] if options.quick else [5120, 27648])
    where = folders(options.results, options.quick)
    # mergekit is measured once, beside the first backend.
    with_peer = not options.no_peer and options.backend == GPU_BACKENDS[0]
    failed = measure(
        found,
        steps(found, gpu, options.quick, with_peer),
        lambda: publish(where, described, [], found),
    )
    print(markdown(described, [], found))
    if failed:
        raise SystemExit(f"bench/gpu.py: {'; '.join(failed)}")
    print(f"{len(found.figures)} figures of {gpu.name}")


if __name__ == "__main__":
    main()
