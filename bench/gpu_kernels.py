"""The kernels of bench/gpu.sh: compiled on a machine without a GPU, carried to one with it, and linked there.

    bench/gpu.sh --compile 90-real

Compiled kernels depend on no Python; a digest beside them tells whether they are of these sources.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Ignored by git: what copies the working tree must be told to carry it.
KERNELS = ROOT / "build/gpu-kernels"
_LIBRARY, _DIGEST = "libfuseo1_cuda.a", "digest"


def configured(build: Path, architecture: str, linked: Path | None = None) -> list[str]:
    """Return CMake's command to configure `build`; it links the kernels in `linked` if they are of these sources."""
    command = [
        *("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DFUSEO1_CUDA=1"),
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={_pybind11()}",
        f"-DCMAKE_CUDA_ARCHITECTURES={architecture}",
        # For compute-sanitizer to name lines; and each file's kernels compiled side by side.
        "-DCMAKE_CUDA_FLAGS=-lineinfo --split-compile=0",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'fuseo1_kernels/backends'}",
    ]
    of_these = linked is not None and _told(linked) == digest(architecture)
    return [*command, f"-DFUSEO1_CUDA_KERNELS={linked / _LIBRARY if linked and of_these else ''}"]


def digest(architecture: str) -> str:
    """Return a digest of all that the kernels are compiled from."""
    made = hashlib.sha256(architecture.encode())
    for folder in ("cuda", "common", "include"):
        for file in sorted((ROOT / "csrc" / folder).rglob("*.*")):
            made.update(f"{file.relative_to(ROOT)} {file.stat().st_size}\n".encode())
            made.update(file.read_bytes())
    return made.hexdigest()


def compile_kernels(architecture: str, build: Path, to: Path = KERNELS) -> int:
    """Compile the kernels into `to`; return the exit status."""
    to.mkdir(parents=True, exist_ok=True)
    (to / _DIGEST).unlink(missing_ok=True)
    told = digest(architecture)
    configure = [*configured(build, architecture), f"-DCMAKE_ARCHIVE_OUTPUT_DIRECTORY={to}"]
    for command in (configure, ["cmake", "--build", str(build), "--target", "fuseo1_cuda"]):
        if status := subprocess.run(command, check=False).returncode:
            return status
    (to / _DIGEST).write_text(told, encoding="utf-8")
    print(
        f"{to / _LIBRARY}: kernels for {architecture}; carry {to.relative_to(ROOT)} to the machine with the GPU"
    )
    return 0


def _told(folder: Path) -> str | None:
    file = folder / _DIGEST
    return file.read_text(encoding="utf-8") if file.exists() else None


def _pybind11() -> str:
    try:
        import pybind11
    except ImportError:
        return "not-found"  # CMake will say so
    return str(pybind11.get_cmake_dir())
