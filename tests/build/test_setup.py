"""Installs of every kind hold the native modules that were asked for, and no earlier build's.

CMake is a stand-in here that writes empty modules in an instant; what it is asked for is what counts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = Path("fuseo1_kernels/backends")

CMAKE = """#!{python}
import sys
from pathlib import Path

if "--build" in sys.argv:
    folder, modules = Path(sys.argv[-1], "asked").read_text().splitlines()
    for module in modules.split():
        Path(folder, module + {suffix!r}).touch()
else:
    said = dict(a[2:].split("=", 1) for a in sys.argv if a.startswith("-D"))
    folder = Path(said["CMAKE_LIBRARY_OUTPUT_DIRECTORY"])
    folder.mkdir(parents=True, exist_ok=True)
    modules = "_cpu _cuda" if said["FUSEO1_CUDA"] == "1" else "_cpu"
    Path(sys.argv[sys.argv.index("-B") + 1], "asked").write_text(f"{{folder}}\\n{{modules}}")
"""
NVIDIA_SMI = "#!/bin/sh\necho 'GPU 0: made up'\n"
NVCC = "#!/bin/sh\n"


class Tree:
    """A copy of the source tree and a folder of programs, alone on PATH."""

    def __init__(self, home: Path) -> None:
        self.root, self.programs = home / "tree", home / "programs"
        self.programs.mkdir()
        shutil.copytree(
            ROOT / "fuseo1_kernels",
            self.root / "fuseo1_kernels",
            ignore=shutil.ignore_patterns("*.so", "__pycache__"),
        )
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, self.root)
        self.program("cmake", CMAKE.format(python=sys.executable, suffix=EXTENSION_SUFFIXES[0]))

    def program(self, name: str, text: str) -> None:
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)

    def build(self, kind: str, cuda: str | None) -> subprocess.CompletedProcess[str]:
        """Build as pip does: `kind` is "wheel", "editable" or "sdist"; `cuda` is FUSEO1_CUDA."""
        code = f"from setuptools import build_meta as b; b.build_{kind}('dist')"
        env = {k: v for k, v in os.environ.items() if k not in ("FUSEO1_CUDA", "CUDACXX")}
        env |= {"PATH": str(self.programs)} | ({} if cuda is None else {"FUSEO1_CUDA": cuda})
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True)

    def modules(self, kind: str, cuda: str | None = None) -> list[str]:
        """Build, and return the names of the modules where Python would find them."""
        built = self.build(kind, cuda)
        assert built.returncode == 0, built.stderr
        if kind == "editable":
            found = [path.name for path in (self.root / BACKENDS).glob("*.so")]
        else:
            [wheel] = (self.root / "dist").glob("*.whl")
            names = zipfile.ZipFile(wheel).namelist()
            found = [n.rpartition("/")[2] for n in names if n.endswith(".so")]
            assert all(n.startswith(str(BACKENDS)) for n in names if n.endswith(".so"))
        return sorted(name.partition(".")[0] for name in found)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_what_was_asked_for_is_where_python_looks(kind: str, tree: Tree) -> None:
    assert tree.modules(kind, "1") == ["_cpu", "_cuda"]
    # The same tree again: neither the source tree nor the build folder keeps the CUDA part.
    assert tree.modules(kind, "0") == ["_cpu"]


def test_a_compiler_alone_is_no_reason_for_cuda(tree: Tree) -> None:
    tree.program("nvcc", NVCC)
    tree.program("nvidia-smi", "#!/bin/sh\necho no driver\nexit 9\n")
    built = tree.build("wheel", None)
    assert built.returncode == 0
    if any(Path("/dev").glob("nvidia[0-9]*")):
        assert "fuseo1: CUDA part on (there is a GPU" in built.stderr
    else:
        assert "fuseo1: CUDA part off (no GPU seen" in built.stderr
        assert tree.modules("editable") == ["_cpu"]


def test_a_gpu_and_a_compiler_are(tree: Tree) -> None:
    tree.program("nvidia-smi", NVIDIA_SMI)
    assert "CUDA part off (there is a GPU, but no nvcc" in tree.build("wheel", None).stderr
    tree.program("nvcc", NVCC)
    assert "CUDA part on (there is a GPU" in tree.build("wheel", None).stderr
    assert tree.modules("editable") == ["_cpu", "_cuda"]
    assert tree.modules("editable", "0") == ["_cpu"]


def test_a_source_distribution_has_what_is_compiled(tree: Tree) -> None:
    for name in ("csrc", "python"):
        shutil.copytree(ROOT / name, tree.root / name)
    for name in ("CMakeLists.txt", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree.root)
    built = tree.build("sdist", "0")
    assert built.returncode == 0, built.stderr
    [archive] = (tree.root / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        there = {name.partition("/")[2] for name in file.getnames()}
    sources = [p for name in ("csrc", "python") for p in (tree.root / name).rglob("*")]
    needed = {str(p.relative_to(tree.root)) for p in sources if p.is_file()} | {"CMakeLists.txt"}
    assert len(needed) > 50
    assert needed - there == set()


def test_versions_name_what_is_built() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "fuseo1_kernels"], capture_output=True, text=True, check=True
    )
    built = [name for name in ("cpu", "cuda") if find_spec(f"fuseo1_kernels.backends._{name}")]
    assert f"kernels in this build: {', '.join(built)}\n" in said.stdout
    assert "cpu" in built


def test_another_value_is_refused(tree: Tree) -> None:
    built = tree.build("wheel", "yes")
    assert built.returncode != 0
    assert "FUSEO1_CUDA must be 0, 1 or unset, not 'yes'" in built.stderr


@pytest.mark.toolchain
def test_cuda_without_nvcc_fails_and_says_so(tmp_path: Path) -> None:
    """By the real CMake, which looks for the compiler."""
    import pybind11

    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
    assert cmake and ninja, "the extra `test` has both"

    command: list[str | Path] = [
        *(cmake, "-S", ROOT, "-B", tmp_path, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
        *(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"),
        "-DFUSEO1_CUDA=1",
    ]
    env = {**os.environ, "CUDACXX": "/nowhere/nvcc"}
    env.pop("CUDA_PATH", None)
    ran = subprocess.run(command, env=env, capture_output=True, text=True)
    assert ran.returncode != 0
    assert "FUSEO1_CUDA=1, but CMake finds no CUDA compiler" in " ".join(ran.stderr.split())
