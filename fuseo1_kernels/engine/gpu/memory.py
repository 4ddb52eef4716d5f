"""How host and device memory are divided among the GPUs of a merge, and what they leave to the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...backends.interface import GpuBackend
from ...errors import BackendError, MergeError, counted
from ...methods.rule import ByColumn
from ...methods.sce import Sce
from ...plan.job import Job
from ...plan.plan import Plan
from ...system import resolve_threads
from ..cpu.memory import WorkerMemory, memory_floor, plan_memory
from ..options import MergeOptions
from ..tuning import DEFAULT_TUNING, Tuning
from .context import ContextSize
from .cpu_fallback import fallback_notes
from .device import Device, explained
from .layout import footprint
from .regions import ALIGNMENT, aligned
from .workspace import needed_bytes

# Without --max-gpu-memory this part of the memory that is free on the GPU may be used.
_DEFAULT_SHARE = 4
# More tensors under way at once, or more readers, gain nothing.
_MOST_WORKERS = 6
_MOST_READERS = 8
# Bytes copied at once, at the least: fewer are far below the bus's speed.
_LEAST_SLOT = 64 << 10


@dataclass(frozen=True)
class MemoryPlan:
    """What each GPU gets, and why some tensors, by name, are merged on the CPU, with how much memory."""

    context: ContextSize
    cpu_reasons: dict[str, str]
    cpu_memory: WorkerMemory | None
    gpus: int

    @property
    def notes(self) -> list[str]:
        """How many tensors are left to the CPU, and why."""
        return fallback_notes(Counter(self.cpu_reasons.values()))

    @property
    def host_bytes(self) -> int:
        """Most of the host's memory that buffers and survey state take."""
        return self.gpus * self.context.host_bytes + (
            self.cpu_memory.total if self.cpu_memory else 0
        )


def plan_gpu_memory(
    plan: Plan,
    devices: Sequence[Device],
    backend: GpuBackend,
    options: MergeOptions,
    also: Sequence[float] = (),
) -> MemoryPlan:
    """Divide the memory for this plan; `also` are other values of select_topk to survey in the same read.

    MergeError if `options.max_memory` is too little.
    """
    threads, max_memory = resolve_threads(options.threads), options.max_memory
    limit = (options.max_gpu_memory or min(map(_default_limit, devices))) // ALIGNMENT * ALIGNMENT
    surveys = 1 + len(also)
    sizes = {
        job.name: footprint(job, surveys, backend.result_bytes, backend.params_bytes)
        for job in plan.jobs
    }
    works, reasons = _works(plan, also, backend)
    few = [name for name in works if sizes[name] + works[name] <= limit]
    work = max((works[name] for name in few), default=0)
    fit = {name for name in few if sizes[name] + work <= limit}
    too_large = f"each needs more than {_mib(limit)} of a GPU's memory (--max-gpu-memory)"
    reasons |= {name: too_large for name in works if name not in fit}
    left = [job for job in plan.jobs if job.name in reasons]
    memory = None
    if left:
        memory = _cpu_memory(left, threads, max_memory // 2, surveys, options.tuning)
    host = (max_memory - (memory.total if memory else 0)) // len(devices)
    region = min(limit - work, sum(sizes[name] for name in fit))
    gpu = _context_size(threads, len(devices), host, region, work, max_memory, options.tuning.slot)
    if not all(isinstance(job.rule, Sce) for job in plan.jobs):
        gpu = replace(gpu, work=0, own=work)
    return MemoryPlan(gpu, reasons, memory, len(devices))


def _context_size(
    threads: int,
    gpus: int,
    host: int,
    region: int,
    work: int,
    max_memory: int,
    most_slot: int = DEFAULT_TUNING.slot,
) -> ContextSize:
    readers = min(_MOST_READERS, max(1, threads // gpus))
    workers = min(_MOST_WORKERS, readers + 1)
    while True:
        slots = ContextSize(workers, readers, 1, region, work).host_bytes
        slot = _power_of_two(min(most_slot, host // slots))
        if slot >= _LEAST_SLOT:
            return ContextSize(workers, readers, slot, region, work)
        if (workers, readers) == (1, 1):
            raise MergeError(
                f"--max-memory {_mib(max_memory)} is too little to feed {counted(gpus, 'GPU')}; "
                f"the least is about {_mib(2 * gpus * slots * _LEAST_SLOT)}"
            )
        workers, readers = max(1, workers - 1), max(1, readers - 1)


def _cpu_memory(
    jobs: Sequence[Job], threads: int, max_memory: int, surveys: int, tuning: Tuning
) -> WorkerMemory:
    needed = memory_floor(jobs, surveys)
    if needed > max_memory:
        raise MergeError(
            "--max-memory is too little for the tensors that are merged on the CPU; "
            f"the least is {_mib(2 * needed)}"
        )
    return plan_memory(jobs, max_memory, threads, tuning)


def _default_limit(device: Device) -> int:
    with explained(device):
        return device.free_bytes() // _DEFAULT_SHARE


def _works(
    plan: Plan, also: Sequence[float], backend: GpuBackend
) -> tuple[dict[str, int], dict[str, str]]:
    """By tensor: bytes that its surveys (or any op) work in; or why the backend cannot merge it."""
    works: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for job in plan.jobs:
        if isinstance(job.rule, ByColumn):
            reasons[job.name] = "nothing is merged by columns on a GPU"
            continue
        if len(job.inputs) - 1 > backend.max_targets:
            reasons[job.name] = (
                f"the {backend.name} backend takes at most {backend.max_targets} targets"
            )
            continue
        try:
            works[job.name] = aligned(_work_bytes(job, also, backend))
        except BackendError as error:
            reasons[job.name] = str(error)
    return works, reasons


def _work_bytes(job: Job, also: Sequence[float], backend: GpuBackend) -> int:
    if not isinstance(job.rule, Sce):
        return needed_bytes(job, backend)
    targets, topks = len(job.inputs) - 1, {job.rule.select_topk, *also}
    return max(backend.workspace_bytes(targets, job.numel, topk) for topk in topks)


def _power_of_two(nbytes: int) -> int:
    """The largest that is not more."""
    return 1 << nbytes.bit_length() >> 1


def _mib(nbytes: int) -> str:
    return f"{-(-nbytes // (1 << 20))} MiB"
