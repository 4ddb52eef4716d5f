"""The workers of a merge on GPUs: each takes whole tensors, for one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...backends.interface import GpuBackend
from ...backends.registry import load_backend, load_gpu_backend
from ...errors import BackendError
from ...plan.plan import Plan
from ...system import resolve_threads
from ..cpu.worker import TensorMerger
from ..worker import Work
from .context import Lane
from .cpu_fallback import CpuHelp
from .device import Device
from .memory import Division, divide_gpus
from .worker import GpuMerger


@dataclass(frozen=True)
class Gpus:
    """GPUs, the kernels that run on them, and the most memory in bytes that is used of each; None: a part."""

    backend: GpuBackend
    devices: tuple[Device, ...]
    max_memory: int | None

    @property
    def name(self) -> str:
        return self.backend.name

    @property
    def description(self) -> str:
        return ", ".join(device.description for device in self.devices)

    def crew(self, plan: Plan, threads: int | None, max_memory: int, work: Work) -> GpuCrew:
        return GpuCrew(self, plan, threads, max_memory, work)

    def host_memory(
        self, plan: Plan, threads: int | None, max_memory: int
    ) -> tuple[int, list[str]]:
        division = self.divide(plan, threads, max_memory)
        return division.host_bytes, division.notes

    def divide(
        self, plan: Plan, threads: int | None, max_memory: int, also: Sequence[float] = ()
    ) -> Division:
        return divide_gpus(
            plan, self.devices, self.backend, threads, max_memory, self.max_memory, also
        )


def open_gpus(backend: str, numbers: tuple[int, ...], max_memory: int | None) -> Gpus:
    """The GPUs of these numbers with the backend of that name ("auto": the best), or BackendError."""
    return Gpus(load_gpu_backend(backend), open_devices(numbers), max_memory)


def open_devices(numbers: tuple[int, ...]) -> tuple[Device, ...]:
    """The GPUs of these numbers, for which torch is imported; BackendError for one that is not there."""
    from .cuda_device import CudaDevice, device_count

    there = device_count()
    for number in numbers:
        if number >= there:
            are = "is 1 GPU" if there == 1 else f"are {there} GPUs"
            raise BackendError(f"there is no cuda:{number} here: there {are}, counted from 0")
    return tuple(CudaDevice(number) for number in numbers)


class GpuCrew:
    """Several workers for every GPU, all of which take from one feed."""

    def __init__(
        self, gpus: Gpus, plan: Plan, threads: int | None, max_memory: int, work: Work
    ) -> None:
        """Reserve the memory of all GPUs. MergeError if there is too little of it, or of the host's."""
        also = work.surveys.also if work.surveys else ()
        division = gpus.divide(plan, threads, max_memory, also)
        self._work = work
        self._lanes: list[Lane] = []
        helper = None
        if division.cpu_memory:
            helper = TensorMerger(
                load_backend("auto"),
                division.cpu_memory,
                work,
                threads=lambda: resolve_threads(threads),
            )
        self._cpu_help = CpuHelp(division.cpu_reasons, helper)
        try:
            for device in gpus.devices:
                self._lanes.append(Lane(device, gpus.backend, division.lane))
        except BaseException:
            self.close()
            raise
        self.workers = len(self._lanes) * division.lane.workers

    def merger(self, number: int, _working: Callable[[], int]) -> GpuMerger:
        return GpuMerger(self._lanes[number % len(self._lanes)], self._work, self._cpu_help)

    def stop(self) -> None:
        for lane in self._lanes:
            lane.stop()

    def close(self) -> None:
        while self._lanes:
            self._lanes.pop().close()

    @property
    def notes(self) -> list[str]:
        return self._cpu_help.notes
