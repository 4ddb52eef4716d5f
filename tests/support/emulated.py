"""The CUDA kernels, compiled for the host (cuda_on_host/): the same sources, thread after thread."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import pybind11

from fuseo1_kernels.backends.cuda.backend import CudaBackend
from support.paths import ROOT

_INCLUDES = ["tests/support/cuda_on_host", "csrc/include", "csrc/common", "csrc/cuda"]
_SOURCES = ["python/cuda_module.cpp", "tests/support/cuda_on_host/emulation.cpp"]
_FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-frounding-math", "-fPIC", "-shared"]


def load_emulated() -> CudaBackend:
    """The CUDA backend whose device is the host; its tensors are the CPU's."""
    return CudaBackend(_built()[0])


def fail_call(number: int) -> None:
    """Let the call of the runtime, or launch, of this number from now on fail, the first being 1; 0: none."""
    _built()[1].emulation_fail(ctypes.c_int64(number))


def calls() -> int:
    """How many there have been since."""
    return int(_built()[1].emulation_calls())


@cache
def _built() -> tuple[ModuleType, ctypes.CDLL]:
    """The extension module, and the same library for its stand-in's own functions."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    with TemporaryDirectory() as folder:
        module = Path(folder) / f"_cuda{suffix}"
        includes = [*(str(ROOT / i) for i in _INCLUDES), pybind11.get_include()]
        includes.append(sysconfig.get_path("include"))
        sources = [*(ROOT / s for s in _SOURCES), *sorted((ROOT / "csrc/cuda").glob("*.cu"))]
        compiling = [
            subprocess.Popen(
                ["g++", *_FLAGS, "-w", '-DFUSEO1_CUDA_ARCHITECTURES="host"']
                + [f"-I{i}" for i in includes]
                + ["-x", "c++", "-c", str(source), "-o", f"{folder}/{source.stem}.o"]
            )
            for source in sources
        ]
        assert [process.wait() for process in compiling] == [0] * len(sources)
        objects = [f"{folder}/{source.stem}.o" for source in sources]
        subprocess.run(["g++", "-shared", *objects, "-o", str(module)], check=True)
        return _load(module), ctypes.CDLL(str(module))


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_cuda", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
