"""Builds the native modules with CMake and ninja; imports neither torch nor the package.

FUSEO1_CUDA=1 builds the CUDA kernels, and fails where there is no nvcc; 0 leaves them out. Unset, they are
built where there are a GPU and nvcc.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
CPU = "fuseo1_kernels.backends._cpu"
CUDA = "fuseo1_kernels.backends._cuda"


class CMakeBuild(build_ext):
    """Builds all extensions by one run of CMake, and puts them where setuptools wants them."""

    def build_extensions(self) -> None:
        import pybind11

        cuda, reason = wants_cuda()
        print(f"fuseo1: CUDA part {'on' if cuda else 'off'} ({reason})", file=sys.stderr)
        # The build folder may hold the modules of an earlier build, which a wheel would contain.
        remove(Path(self.get_ext_fullpath(name)) for name in (CPU, CUDA))
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "--fresh",  # pip's build environments come and go; a cache would point into an old one
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={Path(self.get_ext_fullpath(CPU)).resolve().parent}",
            f"-DFUSEO1_CUDA={int(cuda)}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)

    def copy_extensions_to_source(self) -> None:
        """Put the modules into the source tree, in place of those of an earlier build."""
        remove(ROOT / self.get_ext_filename(name) for name in (CPU, CUDA))
        super().copy_extensions_to_source()


def remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


@cache
def wants_cuda() -> tuple[bool, str]:
    """Whether to build the CUDA kernels, and why."""
    asked = os.environ.get("FUSEO1_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SetupError(f"FUSEO1_CUDA must be 0, 1 or unset, not {asked!r}")
    if asked:
        return asked == "1", f"FUSEO1_CUDA={asked}"
    if not sees_gpu():
        return False, "no GPU seen; FUSEO1_CUDA=1 builds it all the same"
    if not has_nvcc():
        return False, "there is a GPU, but no nvcc on PATH or in CUDACXX"
    return True, "there is a GPU; FUSEO1_CUDA=0 leaves it out"


def sees_gpu() -> bool:
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    try:  # WSL has no such device nodes
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return listed.returncode == 0 and "GPU 0" in listed.stdout


def has_nvcc() -> bool:
    return bool(os.environ.get("CUDACXX") or shutil.which("nvcc"))


if __name__ == "__main__":
    modules = (CPU, CUDA) if wants_cuda()[0] else (CPU,)
    setup(
        ext_modules=[Extension(name, sources=[]) for name in modules],
        cmdclass={"build_ext": CMakeBuild},
    )
