"""Builds the native modules with CMake and ninja; imports neither torch nor the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Hands the extension over to CMakeLists.txt and puts what it builds where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
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
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
            # unset: CUDA if nvcc is found; 1: required; 0: off
            f"-DFUSEO1_CUDA={os.environ.get('FUSEO1_CUDA', '')}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


# CMake builds fuseo1_kernels._cuda beside it, where there is nvcc.
setup(
    ext_modules=[Extension("fuseo1_kernels.backends._cpu", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
