"""What does the arithmetic of a merge of files: a backend on the CPU, or GPUs."""

from __future__ import annotations

from .backends import BACKENDS, GPU_BACKENDS, load_backend
from .cpu_crew import OnCpu
from .errors import BackendError, ConfigError
from .gpu.device import parse_devices
from .prepare import check_sizes
from .work import Arithmetic


def choose_arithmetic(backend: str, device: str | None, max_gpu_memory: int | None) -> Arithmetic:
    """What does the arithmetic: a backend on the CPU, or GPUs; MergeError if it is not here."""
    on_gpu = backend in GPU_BACKENDS
    name = device or ("cuda" if on_gpu else "cpu")
    numbers = parse_devices(name)
    if (numbers is None and on_gpu) or (numbers is not None and backend in BACKENDS):
        raise BackendError(f"backend {backend} does not run on device {name}; drop one of them")
    if max_gpu_memory is not None:
        check_sizes(max_gpu_memory=max_gpu_memory)
    if numbers is None:
        if max_gpu_memory is not None:
            raise ConfigError("max_gpu_memory is for a merge on GPUs: give device, such as cuda")
        return OnCpu(load_backend(backend))
    from .gpu.crew import open_gpus  # a merge on the CPU starts without it

    return open_gpus(backend, numbers, max_gpu_memory)
