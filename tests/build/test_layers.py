"""Imports and includes point down the layers of the package and of csrc/cpu, and no test imports another."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from support.paths import ROOT, TESTS

PACKAGE = "fuseo1_kernels"

ROOM = "the root"

#: csrc/cpu, from the bottom up: each may include what stands on the lines above its own. The kernels, compiled once for
#: every instruction set, know neither surveys nor threads.
CPU_LAYERS = (
    {"fuseo1", "arithmetic", "filter"},
    {"kernels"},
    {"dispatch", "pages", "parallel"},
    {"ranked_selects"},
    {"survey"},
    {"average_api", "decode_api", "files", "fold_api", "fuse_api", "survey_api"},
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


@cache
def table() -> dict[str, set[str]]:
    """The folders and modules of docs/design.md's table, and what each may import by its last column."""
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    section = text.partition("## The folders")[2].partition("##")[0]
    rows = re.findall(r"^\| (.+?) \|.*\| (.+?) \|$", section, re.M)[1:]
    named = {row: re.findall(r"`([\w/]+)`", row) or [row] for row, _ in rows}
    ground = set(named[rows[0][0]])
    allowed: dict[str, set[str]] = {}
    for row, imports in rows:
        given = re.findall(r"`([\w/]+)`", imports)
        for name in named[row]:
            own = {f"{name}/{folder.rstrip('/')}" for folder in given if folder.endswith("/")}
            others = {folder for folder in given if not folder.endswith("/")}
            # A folder does not inherit the imports of its parts.
            inherited = set().union(
                *(allowed[o] - {p for p in allowed if p.startswith(f"{o}/")} for o in others)
            )
            allowed[name] = ground | own | others | inherited
    return allowed


def room(module: str) -> str:
    """The row of the table in which a module stands."""
    parts = module.split(".")
    for name in ("/".join(parts[:2]), parts[0]):
        if name in table():
            return name
    return ROOM


def test_every_folder_is_in_the_table() -> None:
    folders = {path.name for path in (ROOT / PACKAGE).iterdir() if (path / "__init__.py").exists()}
    assert folders <= table().keys()
    assert {name for name in table() if "/" not in name} - {ROOM} == folders | table()["backends"]
    doors = re.search(r"^\| the root \| (.+?) \|", (ROOT / "docs/design.md").read_text(), re.M)
    assert doors is not None
    modules_at_root = {name for name in modules() if room(name) == ROOM} - {"__init__", "__main__"}
    assert modules_at_root == {*re.findall(r"`(\w+)`", doors[1])}


def test_imports_are_those_of_the_table() -> None:
    found = {name: {room(module) for module in arrows()[name]} for name in modules()}
    wrong = {n: rooms - table()[room(n)] - {room(n)} for n, rooms in found.items()}
    assert {name: rooms for name, rooms in wrong.items() if rooms} == {}


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
