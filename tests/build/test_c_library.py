"""The C library: built and installed by CMake, moved, and linked by a program in C that merges."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fuseo1_kernels.version import __version__
from support.paths import ROOT, TESTS

pytestmark = pytest.mark.toolchain

HEADERS = sorted((ROOT / "csrc/include/fuseo1").glob("*.h"))
CONSUMER = TESTS / "support/c_library"
PROGRAM = CONSUMER / "merge.c"
#: The `test` extra's CMake and ninja are beside its Python.
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))


def tool(name: str) -> str:
    return shutil.which(name, path=PATH) or pytest.skip(f"there is no {name} on this machine")


def run(*command: str | Path, **env: str) -> str:
    """Run a command that must succeed, with these additions to the environment; return what it printed."""
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def cmake_build(source: Path, build: Path, *options: str) -> None:
    ninja = f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"
    run(tool("cmake"), "-S", source, "-B", build, "-G", "Ninja", ninja, *options)
    run(tool("cmake"), "--build", build)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed tree, moved from where it was installed; a program finds nothing left there."""
    home = tmp_path_factory.mktemp("library")
    # No Python and no pybind11 is looked for: neither is given.
    cmake_build(ROOT, home / "build", "-DFUSEO1_LIBRARY=1", "-DCMAKE_INSTALL_LIBDIR=lib")
    run(tool("cmake"), "--install", home / "build", "--prefix", home / "first")
    shutil.rmtree(home / "build")
    return (home / "first").rename(home / "moved")


def exported(library: Path) -> set[str]:
    lines = run(tool("nm"), "-D", "--defined-only", library).splitlines()
    return {line.split()[-1] for line in lines}


def declared() -> set[str]:
    """The functions of the headers that the library comes with."""
    texts = [re.sub(r"//.*", "", h.read_text()) for h in HEADERS if h.name != "cuda.h"]
    return {name for text in texts for name in re.findall(r"\b(fuseo1_\w+)\(", text)}


@pytest.mark.parametrize("language", [("cc", "c11"), ("c++", "c++17")], ids=lambda pair: pair[1])
def test_headers_compile_alone_without_a_warning(language: tuple[str, str]) -> None:
    compiler, standard = language
    kind = {"cc": "c", "c++": "c++"}[compiler]
    for header in HEADERS:
        flags = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", f"-std={standard}"]
        line = f'#include "fuseo1/{header.name}"\n'
        command = [tool(compiler), *flags, f"-I{ROOT / 'csrc/include'}", "-x", kind, "-"]
        done = subprocess.run(command, input=line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_program_is_short_and_stands_in_the_docs() -> None:
    program = PROGRAM.read_text()
    assert len(program.splitlines()) <= 40
    page = (ROOT / "docs/c_library.md").read_text()
    assert f"```c\n{program}```\n" in page
    assert f"```cmake\n{(CONSUMER / 'CMakeLists.txt').read_text()}```\n" in page


@pytest.mark.slow
class TestInstalled:
    def test_it_is_the_library_its_headers_and_how_to_find_them(self, installed: Path) -> None:
        major_minor = ".".join(__version__.split(".")[:2])
        library = "lib/libfuseo1_cpu.so"
        expected = {library, f"{library}.{major_minor}", f"{library}.{__version__}"}
        expected |= {f"include/fuseo1/{h.name}" for h in HEADERS if h.name != "cuda.h"}
        expected |= {
            f"lib/cmake/fuseo1/fuseo1-config{end}.cmake" for end in ("", "-release", "-version")
        }
        expected |= {"lib/pkgconfig/fuseo1_cpu.pc", "share/doc/fuseo1_kernels/LICENSE"}
        files = {str(p.relative_to(installed)) for p in installed.rglob("*") if not p.is_dir()}
        assert files == expected
        dynamic = run(tool("readelf"), "-d", installed / library)
        assert f"[libfuseo1_cpu.so.{major_minor}]" in dynamic

    def test_it_shows_the_c_abi_and_nothing_of_c_plus_plus(self, installed: Path) -> None:
        library = installed / "lib/libfuseo1_cpu.so"
        assert exported(library) == declared()
        assert len(declared()) > 20
        needed = re.findall(r"NEEDED.*\[(.*)\]", run(tool("readelf"), "-d", library))
        assert needed
        assert [n for n in needed if not re.match(r"lib(c|m|pthread)\.so|ld-linux", n)] == []

    def test_a_program_finds_it_by_cmake(self, installed: Path, tmp_path: Path) -> None:
        cmake_build(CONSUMER, tmp_path, f"-DCMAKE_PREFIX_PATH={installed}")
        assert run(tmp_path / "merge") == "4 5 4 4\n"

    @pytest.mark.parametrize(
        "compiler",
        [
            ("cc", "-std=c11", "-Wextra"),
            ("c++", "-std=c++20", "-x", "c++"),  # -Wextra has C++ name every field
        ],
        ids=["C", "C++"],
    )
    def test_a_program_finds_it_by_pkg_config(
        self, compiler: tuple[str, ...], installed: Path, tmp_path: Path
    ) -> None:
        search = {"PKG_CONFIG_PATH": str(installed / "lib/pkgconfig")}
        flags = run(tool("pkg-config"), "--cflags", "--libs", "fuseo1_cpu", **search).split()
        version = run(tool("pkg-config"), "--modversion", "fuseo1_cpu", **search)
        assert version.strip() == __version__
        name, *options = compiler
        program = tmp_path / "merge"
        run(tool(name), *options, "-Wall", "-pedantic", "-Werror", PROGRAM, "-o", program, *flags)
        assert run(program, LD_LIBRARY_PATH=str(installed / "lib")) == "4 5 4 4\n"

    def test_no_exception_leaves_a_call(self, installed: Path) -> None:
        """More memory than a vector can hold is a status, too: what C cannot catch would end the program."""
        code = """
import ctypes, sys
library, survey = ctypes.CDLL(sys.argv[1]), ctypes.c_void_p()
rows = ctypes.c_int64(1 << 62)
print(library.fuseo1_survey_create_divergences(rows, ctypes.c_int64(1), ctypes.byref(survey)))
"""
        types = (ROOT / "csrc/include/fuseo1/types.h").read_text()
        out_of_memory = re.search(r"FUSEO1_OUT_OF_MEMORY = (\d)", types)
        assert out_of_memory
        said = run(sys.executable, "-c", code, installed / "lib/libfuseo1_cpu.so")
        assert said.strip() == out_of_memory[1]
