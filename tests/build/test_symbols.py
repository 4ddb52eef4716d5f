"""The native module's objects show the linker no symbol that it could mix up with another object's."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fuseo1_kernels.backends import _cpu
from support.paths import ROOT
from support.tensors import ISAS

pytestmark = pytest.mark.toolchain

KERNELS = ROOT / "csrc/cpu/kernels"
SOURCES = sorted(source.name for source in KERNELS.glob("*.cpp"))


def tool(*names: str) -> str:
    """The first of these programs there is."""
    for name in names:
        if found := shutil.which(name):
            return found
    pytest.skip(f"there is no {' or '.join(names)} on this machine")


def symbols(*arguments: str | Path) -> list[tuple[str, str]]:
    """(kind, name) of every symbol that nm lists."""
    done = subprocess.run([tool("nm"), *arguments], capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return [(fields[-2], fields[-1]) for fields in lines if len(fields) >= 2]


def isa_flags() -> dict[str, list[str]]:
    """Return the flags with which CMakeLists.txt compiles each instruction set's sources."""
    text = (ROOT / "CMakeLists.txt").read_text()
    arithmetic = re.search(r"set\(FUSEO1_ARITHMETIC (.*?)\)", text)
    isas = re.findall(r"^\s*fuseo1_add_isa\((\w+)(.*?)\)$", text, re.MULTILINE)
    assert arithmetic and [name for name, _ in isas] == list(ISAS)
    return {name: arithmetic[1].split() + flags.split() for name, flags in isas}


def test_the_module_exports_its_init_function_only() -> None:
    if platform.system() != "Linux":
        pytest.skip("nm -D is for ELF")
    exported = symbols("-D", "--defined-only", _cpu.__file__)
    assert exported == [("T", "PyInit__cpu")]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("isa", ISAS)
def test_sources_compiled_per_isa_share_no_symbol(isa: str, source: str, tmp_path: Path) -> None:
    """The linker may keep any one of several weak copies: an AVX-512 one would end in SIGILL elsewhere."""
    if isa != "baseline" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"{isa} is compiled for x86-64 only")
    compiler = tool("c++", "g++", "clang++")
    for optimization in ("-O3", "-O1"):  # less is inlined at -O1
        built = tmp_path / f"{isa}{optimization}.o"
        subprocess.run(
            [
                compiler, "-std=c++17", optimization, "-fPIC", "-fvisibility=hidden", "-w",
                "-fvisibility-inlines-hidden", f"-DFUSEO1_ISA={isa}", *isa_flags()[isa],
                *(f"-I{ROOT / 'csrc' / d}" for d in ("include", "common", "cpu")),
                "-c", str(KERNELS / source), "-o", str(built),
            ],
            check=True,
        )  # fmt: skip
        defined = symbols("--defined-only", built)
        shared = [name for kind, name in defined if kind in "WwVvu"]
        assert shared == []
        globals_ = [name for kind, name in defined if kind.isupper()]
        assert len(globals_) == 1 and f"{Path(source).stem}_{isa}" in globals_[0]
