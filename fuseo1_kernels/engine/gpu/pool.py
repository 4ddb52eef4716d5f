"""The workers of a merge on GPUs: each takes whole tensors, for one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...backends.interface import GpuBackend
from ...backends.registry import load_backend, load_gpu_backend
from ...errors import BackendError
from ...plan.plan import Plan
from ...system import resolve_threads
from ..cpu.worker import CpuWorker
from ..options import MergeOptions
from ..worker import MergeContext
from .context import GpuContext
from .cpu_fallback import CpuFallback
from .device import Device
from .memory import MemoryPlan, plan_gpu_memory
from .worker import GpuWorker


@dataclass(frozen=True)
class GpuExecutor:
    """GPUs, and the backend whose kernels run on them."""

    backend: GpuBackend
    devices: tuple[Device, ...]

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def description(self) -> str:
        return ", ".join(device.description for device in self.devices)

    def pool(self, plan: Plan, options: MergeOptions, context: MergeContext) -> GpuPool:
        return GpuPool(self, plan, options, context)

    def host_memory(self, plan: Plan, options: MergeOptions) -> tuple[int, list[str]]:
        budget = self.plan_memory(plan, options)
        return budget.host_bytes, budget.notes

    def plan_memory(
        self, plan: Plan, options: MergeOptions, also: Sequence[float] = ()
    ) -> MemoryPlan:
        return plan_gpu_memory(plan, self.devices, self.backend, options, also)


def open_gpus(backend: str, numbers: tuple[int, ...]) -> GpuExecutor:
    """The GPUs of these numbers with the backend of that name ("auto": the best), or BackendError."""
    return GpuExecutor(load_gpu_backend(backend), open_devices(numbers))


def open_devices(numbers: tuple[int, ...]) -> tuple[Device, ...]:
    """The GPUs of these numbers, for which torch is imported; BackendError for one that is not there."""
    from .cuda_device import CudaDevice, device_count

    there = device_count()
    for number in numbers:
        if number >= there:
            are = "is 1 GPU" if there == 1 else f"are {there} GPUs"
            raise BackendError(f"there is no cuda:{number} here: there {are}, counted from 0")
    return tuple(CudaDevice(number) for number in numbers)


class GpuPool:
    """Several workers for every GPU, all of which take from one feed."""

    def __init__(
        self, gpus: GpuExecutor, plan: Plan, options: MergeOptions, context: MergeContext
    ) -> None:
        """Reserve the memory of all GPUs. MergeError if there is too little of it, or of the host's."""
        also = context.surveys.also if context.surveys else ()
        budget = gpus.plan_memory(plan, options, also)
        self._context = context
        self._gpus: list[GpuContext] = []
        helper = None
        if budget.cpu_memory:
            helper = CpuWorker(
                load_backend("auto"),
                budget.cpu_memory,
                context,
                threads=lambda: resolve_threads(options.threads),
            )
        self._cpu_fallback = CpuFallback(budget.cpu_reasons, helper)
        try:
            for device in gpus.devices:
                self._gpus.append(GpuContext(device, gpus.backend, budget.context))
        except BaseException:
            self.close()
            raise
        self.size = len(self._gpus) * budget.context.workers

    def worker(self, number: int, _working: Callable[[], int]) -> GpuWorker:
        return GpuWorker(self._gpus[number % len(self._gpus)], self._context, self._cpu_fallback)

    def stop(self) -> None:
        for gpu in self._gpus:
            gpu.stop()

    def close(self) -> None:
        while self._gpus:
            self._gpus.pop().close()

    @property
    def notes(self) -> list[str]:
        return self._cpu_fallback.notes
