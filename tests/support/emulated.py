"""The CUDA kernels, compiled for the host (cuda_on_host/): the same sources, thread after thread."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory
from types import ModuleType

import pybind11
import pytest

from fuseo1_kernels.backends.cuda.backend import CudaBackend
from support.paths import ROOT

_INCLUDES = ["tests/support/cuda_on_host", "csrc/include", "csrc/common", "csrc/cuda"]
_SOURCES = ["python/cuda_module.cpp", "tests/support/cuda_on_host/emulation.cpp"]
_FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared"]
#: It holds what was compiled, by a digest of all that it was compiled from.
_KEPT = ROOT / "build/emulated"


def load_emulated() -> CudaBackend:
    """The CUDA backend whose device is the host; its tensors are the CPU's."""
    return CudaBackend(_loaded()[0])


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
    if not which("g++"):
        pytest.skip("no C++ compiler here")
    kept = _KEPT / _digest()
    module = kept / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    kept.mkdir(parents=True, exist_ok=True)
    with open(kept / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not module.exists():
            _build(module)
    return _load(module), ctypes.CDLL(str(module))


def _sources() -> list[Path]:
    return [*(ROOT / s for s in _SOURCES), *sorted((ROOT / "csrc/cuda").glob("*.cu"))]


def _digest() -> str:
    found = hashlib.sha256(repr((_FLAGS, pybind11.__version__)).encode())
    found.update(subprocess.run(["g++", "--version"], capture_output=True, check=True).stdout)
    headers = [path for i in _INCLUDES for path in sorted((ROOT / i).rglob("*.*"))]
    for path in (*_sources(), *headers):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _build(module: Path) -> None:
    """Compile, each source by itself; the module appears whole."""
    includes = [*(str(ROOT / i) for i in _INCLUDES), pybind11.get_include()]
    includes.append(sysconfig.get_path("include"))
    with TemporaryDirectory(dir=module.parent) as folder:
        objects = {source: f"{folder}/{source.stem}.o" for source in _sources()}
        compiling = [
            subprocess.Popen(
                ["g++", *_FLAGS, "-w", '-DFUSEO1_CUDA_ARCHITECTURES="host"']
                + [f"-I{i}" for i in includes]
                + ["-x", "c++", "-c", str(source), "-o", compiled]
            )
            for source, compiled in objects.items()
        ]
        assert [process.wait() for process in compiling] == [0] * len(objects)
        linked = Path(folder) / module.name
        subprocess.run(["g++", "-shared", *objects.values(), "-o", str(linked)], check=True)
        linked.rename(module)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_cuda", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
