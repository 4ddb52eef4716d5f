"""The executor and the worker pool of a merge on GPUs. Every tensor is merged on one GPU."""

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
    """A backend and the GPUs that its kernels run on."""

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
    """Return an executor for the named backend ("auto": the first that runs) on these GPUs. Raises BackendError."""
    return GpuExecutor(load_gpu_backend(backend), open_devices(numbers))


def open_devices(numbers: tuple[int, ...]) -> tuple[Device, ...]:
    """Return the GPUs with these numbers. Imports torch. Raises BackendError if a GPU does not exist."""
    from .cuda_device import CudaDevice, device_count

    count = device_count()
    for number in numbers:
        if number >= count:
            are = "is 1 GPU" if count == 1 else f"are {count} GPUs"
            raise BackendError(f"there is no cuda:{number} here: there {are}, counted from 0")
    return tuple(CudaDevice(number) for number in numbers)


class GpuPool:
    """The workers of all GPUs, several for each."""

    def __init__(
        self, gpus: GpuExecutor, plan: Plan, options: MergeOptions, context: MergeContext
    ) -> None:
        """Allocate the memory of all GPUs. Raises MergeError if there is too little on a GPU or on the host."""
        also = context.surveys.also if context.surveys else ()
        budget = gpus.plan_memory(plan, options, also)
        self._context = context
        self._gpus: list[GpuContext] = []
        cpu_worker = None
        if budget.cpu_memory:
            cpu_worker = CpuWorker(
                load_backend("auto"),
                budget.cpu_memory,
                context,
                threads=lambda: resolve_threads(options.threads),
            )
        self._cpu_fallback = CpuFallback(budget.cpu_reasons, cpu_worker)
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
