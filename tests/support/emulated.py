"""The CUDA kernels, compiled for the host (cuda_on_host/): the same sources, in an order that a seed decides."""

from __future__ import annotations

import ctypes
import importlib.util
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11
import pytest

from fuseo1_kernels.backends.cuda.backend import CudaBackend
from support.host_builds import KEPT, built, has_library
from support.paths import ROOT

KERNELS = ROOT / "csrc/cuda"
_HOST = ROOT / "tests/support/cuda_on_host"
_INCLUDES = [_HOST, ROOT / "csrc/include", ROOT / "csrc/common"]
_STAND_IN = [_HOST / "emulation.cpp", _HOST / "threads.cpp"]
_FLAGS = ["-std=c++17", "-w", "-ffp-contract=off", "-U_FORTIFY_SOURCE"]
#: A call of a collective is known by its address: none may be duplicated, and no two may be made one.
_CALLS = ["-fno-thread-jumps", "-fno-reorder-blocks", "-fno-split-paths"]
_CALLS += ["-fno-tree-tail-merge", "-fno-crossjumping"]


def load_emulated(seed: int = 1) -> CudaBackend:
    """The CUDA backend whose device is the host; its tensors are the CPU's. It begins anew with this seed."""
    module, library = _loaded()
    library.emulation_seed(ctypes.c_uint64(seed))
    return CudaBackend(module)


def program(
    source: str,
    *,
    sanitized: bool = False,
    kernels: bool = False,
    headers: Path = KERNELS,
    kept: Path = KEPT,
) -> Path:
    """A program of cuda_on_host/ that launches its own kernels, or also the package's.

    `sanitized`: ThreadSanitizer watches the kernels. `headers`: those of the package's kernels, perhaps changed.
    """
    if sanitized and not has_library("libtsan.so"):
        pytest.skip("no ThreadSanitizer here")
    optimized = ["-O1", "-g1", "-DFUSEO1_TSAN"] if sanitized else ["-O2"]
    watched = ["-fsanitize=thread"] if sanitized else []
    flags = [*_FLAGS, *_CALLS, *optimized]
    sources = dict.fromkeys(_STAND_IN, flags)
    for path in (_HOST / source, *(sorted(KERNELS.glob("*.cu")) if kernels else ())):
        sources[path] = flags + watched
    return built(source.removesuffix(".cpp"), sources, [*_INCLUDES, headers], watched, kept)


def fail_call(number: int) -> None:
    """Let the call of the runtime, or launch, of this number from now on fail, the first being 1; 0: none."""
    _loaded()[1].emulation_fail(ctypes.c_int64(number))


def calls() -> int:
    """How many there have been since."""
    return int(_loaded()[1].emulation_calls())


def contexts() -> int:
    """How many calls have ever needed a context on the GPU."""
    return int(_loaded()[1].emulation_contexts())


def set_capability(capability: int) -> None:
    """Give the GPU a compute capability, times 10; the kernels are said to be built for 80 and 90."""
    _loaded()[1].emulation_capability(ctypes.c_int(capability))


@cache
def _loaded() -> tuple[ModuleType, ctypes.CDLL]:
    """The extension module, and the same library for its stand-in's own functions."""
    flags = [*_FLAGS, *_CALLS, "-O2", "-fPIC", '-DFUSEO1_CUDA_ARCHITECTURES="host"']
    flags += [f"-DFUSEO1_PYBIND11={pybind11.__version__}"]  # another one, another build
    flags += [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    sources = [ROOT / "python/cuda_module.cpp", *_STAND_IN, *sorted(KERNELS.glob("*.cu"))]
    name = f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    path = built(name, dict.fromkeys(sources, flags), [*_INCLUDES, KERNELS], ["-shared"])
    return _load(path), ctypes.CDLL(str(path))


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_cuda", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
