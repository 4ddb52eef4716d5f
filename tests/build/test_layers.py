"""Imports and includes point down the layers of the package and of csrc/cpu, and no test imports another."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from support.paths import ROOT, TESTS

PACKAGE = "fuseo1_kernels"

#: From the bottom up. Each may import what stands on the lines above its own, and nothing else of the package.
LAYERS = (
    {"errors", "version"},
    {"system", "terminal"},
    {"backends"},
    {"methods"},
    {"config", "checkpoint"},
    {"plan"},
    {"engine", "in_memory"},
    {"integrations"},
    {"cli", "bench"},
    {"merge", "verify", "mergekit", "torch_ops", "__main__", "__init__"},  # doors
)

#: csrc/cpu, in the same way: the kernels, compiled once for every instruction set, know neither surveys nor threads.
CPU_LAYERS = (
    {"fuseo1", "arithmetic"},
    {"kernels"},
    {"dispatch", "pages", "parallel"},
    {"ranked_selects"},
    {"survey"},
    {"files", "fuse_api", "survey_api"},
)

MOST_LINES = 400


def ranks(layers: tuple[set[str], ...]) -> dict[str, int]:
    return {name: rank for rank, layer in enumerate(layers) for name in layer}


@cache
def modules() -> dict[str, Path]:
    """By dotted name without the package's own; the package itself is `__init__`."""
    found: dict[str, Path] = {}
    for path in (ROOT / PACKAGE).rglob("*.py"):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name or "__init__"] = path
    return found


def imports_of(path: Path) -> Iterator[str]:
    """Absolute dotted names of everything that a file imports, inside of functions and for types alone too."""
    package = (PACKAGE, *path.relative_to(ROOT / PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join((*above, *filter(None, [node.module])))
            yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def arrows() -> dict[str, set[str]]:
    """The modules of the package that each of them imports."""
    known, found = modules(), dict[str, set[str]]()
    for name, path in known.items():
        found[name] = set()
        for imported in imports_of(path):
            if imported == PACKAGE or imported.startswith(f"{PACKAGE}."):
                inner = imported.removeprefix(PACKAGE).lstrip(".")
                # `inner` names a module, or something that a module has.
                module = inner if inner in known else inner.rpartition(".")[0] or "__init__"
                found[name].add(module)
    return found


def test_every_part_has_its_layer() -> None:
    assert {name.partition(".")[0] for name in modules()} == set(ranks(LAYERS))


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_down(name: str) -> None:
    rank, mine = ranks(LAYERS), name.partition(".")[0]
    others = {module.partition(".")[0] for module in arrows()[name]} - {mine}
    assert {other for other in others if rank[other] >= rank[mine]} == set()


def test_there_is_no_circle() -> None:
    try:
        list(TopologicalSorter(arrows()).static_order())
    except CycleError as circle:
        raise AssertionError(" <- ".join(circle.args[1])) from None


def test_includes_of_the_cpus_kernels_point_down() -> None:
    rank, cpu = ranks(CPU_LAYERS), ROOT / "csrc/cpu"
    for path in (p for p in cpu.rglob("*") if p.suffix in (".h", ".cpp")):
        mine = path.relative_to(cpu).parts[0].partition(".")[0]
        for name in re.findall(r'^#include "([^"]+)"', path.read_text(encoding="utf-8"), re.M):
            beside = (path.parent / name).exists() and path.parent != cpu
            other = mine if beside else name.partition("/")[0].partition(".")[0]
            assert other == mine or rank[other] < rank[mine], f"{path} includes {name}"


def test_no_test_imports_another() -> None:
    """tests/support holds what two tests need."""
    folders = {path.name for path in TESTS.iterdir() if path.is_dir()} - {"support", "__pycache__"}
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                first = name.partition(".")[0]
                assert not first.startswith("test_") and first not in {
                    *folders,
                    "tests",
                    "conftest",
                }, path


def test_no_file_is_long() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    files = [ROOT / name for name in listed.split()] or [*TESTS.rglob("*.py"), *modules().values()]
    suffixes = {".py", ".pyi", ".h", ".cpp", ".cu", ".cuh", ".md", ".sh", ".toml", ".txt", ".yaml"}
    long = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if path.suffix in suffixes and path.exists() and "results" not in path.parts
        if (lines := path.read_text(encoding="utf-8").count("\n")) > MOST_LINES
    }
    assert long == {}
