"""What does the arithmetic of a merge of files: a backend on the CPU, or GPUs."""

from __future__ import annotations

import re

from ..backends.registry import BACKENDS, GPU_BACKENDS, load_backend
from ..errors import BackendError, ConfigError
from .cpu.pool import CpuExecutor
from .options import MergeOptions, check_sizes
from .worker import Executor

_NAME = re.compile(r"cuda(?::(0|[1-9]\d{0,3}))?")


def choose_executor(options: MergeOptions) -> Executor:
    """The CPU or the GPUs that `options` name, with their backend. MergeError if one is not here."""
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
    from .gpu.pool import open_gpus  # a merge on the CPU starts without it

    return open_gpus(backend, numbers)


def parse_devices(names: str) -> tuple[int, ...] | None:
    """The numbers of the GPUs that "cuda", "cuda:1" or "cuda:0,cuda:1" names; None for "cpu".

    Raises ConfigError.
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
