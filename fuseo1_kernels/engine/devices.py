"""Chooses the executor of a merge: a backend on the CPU, or GPUs."""

from __future__ import annotations

import re

from ..backends.registry import BACKENDS, GPU_BACKENDS, load_backend
from ..errors import BackendError, ConfigError
from .cpu.pool import CpuExecutor
from .options import MergeOptions, check_sizes
from .worker import Executor

_NAME = re.compile(r"cuda(?::(0|[1-9]\d{0,3}))?")


def choose_executor(options: MergeOptions) -> Executor:
    """Return an executor for the backend and the device that `options` name.

    Raises:
        BackendError: the backend or a GPU is not available here, or the two do not fit together.
        ConfigError: a malformed device, or a wrong or misplaced `max_gpu_memory`.
    """
    backend, device, max_gpu_memory = options.backend, options.device, options.max_gpu_memory
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
        return CpuExecutor(load_backend(backend))
    from .gpu.pool import open_gpus  # imported late: a merge on the CPU does not need it

    return open_gpus(backend, numbers)


def parse_devices(names: str) -> tuple[int, ...] | None:
    """Return the GPU numbers in `names`, such as "cuda", "cuda:1" or "cuda:0,cuda:1"; None for "cpu".

    Raises ConfigError for any other form, and for a GPU that is named twice.
    """
    if names == "cpu":
        return None
    matches = [_NAME.fullmatch(name.strip()) for name in names.split(",")]
    numbers = tuple(int(match[1] or 0) for match in matches if match)
    if len(numbers) != len(matches):
        raise ConfigError(f"device {names!r}: write cpu, cuda, cuda:0 or cuda:0,cuda:1")
    if len(set(numbers)) != len(numbers):
        raise ConfigError(f"device {names!r} names a GPU twice")
    return numbers
