"""Budgets the host and device memory of a merge on GPUs, and leaves tensors that do not fit to the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...backends.interface import GpuBackend
from ...errors import BackendError, MergeError, counted, mib
from ...methods.rule import Average, ByColumn, Copied
from ...methods.sce import Sce
from ...plan.job import Job
from ...plan.plan import Plan
from ...system import resolve_threads
from ..cpu.memory import WorkerMemory, memory_floor, plan_memory
from ..headers_memory import left_by_headers
from ..options import MergeOptions
from ..tuning import DEFAULT_TUNING, Tuning
from .context import ContextSize
from .cpu_fallback import fallback_notes
from .device import Device, explained
from .layout import footprint
from .regions import ALIGNMENT, aligned
from .workspace import blocking_bytes

# Without --max-gpu-memory a merge uses free memory / _DEFAULT_SHARE.
_DEFAULT_SHARE = 4
# More workers or readers per GPU gain nothing.
_MOST_WORKERS = 6
_MOST_READERS = 8
# Bytes. Smaller copies are far below the speed of the bus.
_LEAST_SLOT = 64 << 10


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of a merge on GPUs.

    Attributes:
        context: the sizes of each GPU's context.
        cpu_reasons: by tensor name, why it is merged on the CPU.
        cpu_memory: the memory of the worker on the CPU; None if `cpu_reasons` is empty.
        gpus: number of GPUs.
    """

    context: ContextSize
    cpu_reasons: dict[str, str]
    cpu_memory: WorkerMemory | None
    gpus: int

    @property
    def notes(self) -> list[str]:
        """How many tensors are merged on the CPU, by reason."""
        return fallback_notes(Counter(self.cpu_reasons.values()))

    @property
    def host_bytes(self) -> int:
        """The most bytes of host memory for headers, buffers and survey state."""
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
    """Divide the memory for `plan`. `also`: more values of select_topk to survey in the same read.

    Raises MergeError if `options.max_memory` is too little.
    """
    threads = resolve_threads(options.threads)
    max_memory = left_by_headers(plan, options.max_memory, 1)
    limit = (options.max_gpu_memory or min(map(_default_limit, devices))) // ALIGNMENT * ALIGNMENT
    surveys = 1 + len(also)
    sizes = {
        job.name: footprint(job, surveys, backend.result_bytes, backend.params_bytes)
        for job in plan.jobs
    }
    workspaces, reasons = _workspaces(plan, also, backend)
    candidates = [name for name in workspaces if sizes[name] + workspaces[name] <= limit]
    workspace = max((workspaces[name] for name in candidates), default=0)
    fit = {name for name in candidates if sizes[name] + workspace <= limit}
    too_large = f"each needs more than {mib(limit)} of a GPU's memory (--max-gpu-memory)"
    reasons |= {name: too_large for name in workspaces if name not in fit}
    cpu_jobs = [job for job in plan.jobs if job.name in reasons]
    cpu_memory = None
    if cpu_jobs:
        cpu_memory = _cpu_memory(cpu_jobs, threads, max_memory // 2, surveys, options.tuning)
    host = (max_memory - (cpu_memory.total if cpu_memory else 0)) // len(devices)
    region = min(limit - workspace, sum(sizes[name] for name in fit))
    context = _context_size(
        threads, len(devices), host, region, workspace, max_memory, options.tuning.slot
    )
    if not all(isinstance(job.rule, Sce | Copied) for job in plan.jobs):
        # Blocking ops allocate their workspace through torch.
        context = replace(context, workspace_bytes=0, torch_bytes=workspace)
    return MemoryPlan(context, reasons, cpu_memory, len(devices))


def _context_size(
    threads: int,
    gpus: int,
    host: int,
    region: int,
    workspace: int,
    max_memory: int,
    most_slot: int = DEFAULT_TUNING.slot,
) -> ContextSize:
    """Choose workers, readers and slots that fit `host` bytes of host memory. Raises MergeError if none do."""
    readers = min(_MOST_READERS, max(1, threads // gpus))
    workers = min(_MOST_WORKERS, readers + 1)
    while True:
        slots = ContextSize(workers, readers, 1, region, workspace).host_bytes
        slot = _power_of_two(min(most_slot, host // slots))
        if slot >= _LEAST_SLOT:
            return ContextSize(workers, readers, slot, region, workspace)
        if (workers, readers) == (1, 1):
            raise MergeError(
                f"--max-memory {mib(max_memory)} is too little to feed {counted(gpus, 'GPU')}; "
                f"the least is about {mib(2 * gpus * slots * _LEAST_SLOT)}"
            )
        workers, readers = max(1, workers - 1), max(1, readers - 1)


def _cpu_memory(
    jobs: Sequence[Job], threads: int, max_memory: int, surveys: int, tuning: Tuning
) -> WorkerMemory:
    """Budget the worker for `jobs`, which are merged on the CPU. Raises MergeError if `max_memory` is too little."""
    needed = memory_floor(jobs, surveys)
    if needed > max_memory:
        raise MergeError(
            "--max-memory is too little for the tensors that are merged on the CPU; "
            f"the least is {mib(2 * needed)}"
        )
    return plan_memory(jobs, max_memory, threads, tuning)


def _default_limit(device: Device) -> int:
    with explained(device):
        return device.free_bytes() // _DEFAULT_SHARE


def _workspaces(
    plan: Plan, also: Sequence[float], backend: GpuBackend
) -> tuple[dict[str, int], dict[str, str]]:
    """Return, by tensor name, the bytes of workspace that its ops need, or why the backend cannot merge it."""
    workspaces: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for job in plan.jobs:
        if isinstance(job.rule, Copied):
            reasons[job.name] = "integers are copied"
            continue
        if job.computed:
            reasons[job.name] = "inputs that are computed while they are read are so on the CPU"
            continue
        if isinstance(job.rule, Average):
            reasons[job.name] = "averages are made on the CPU"
            continue
        if isinstance(job.rule, ByColumn):
            reasons[job.name] = "nothing is merged by columns on a GPU"
            continue
        if len(job.inputs) - 1 > backend.max_targets:
            reasons[job.name] = (
                f"the {backend.name} backend takes at most {backend.max_targets} targets"
            )
            continue
        try:
            workspaces[job.name] = aligned(_workspace_bytes(job, also, backend))
        except BackendError as error:
            reasons[job.name] = str(error)
    return workspaces, reasons


def _workspace_bytes(job: Job, also: Sequence[float], backend: GpuBackend) -> int:
    if not isinstance(job.rule, Sce):
        return blocking_bytes(job, backend)
    targets, topks = len(job.inputs) - 1, {job.rule.select_topk, *also}
    return max(backend.workspace_bytes(targets, job.numel, topk) for topk in topks)


def _power_of_two(nbytes: int) -> int:
    """Return the largest power of two that is at most `nbytes`; 0 if there is none."""
    return 1 << nbytes.bit_length() >> 1
