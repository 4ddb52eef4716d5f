"""The table of folders in docs/design.md holds: which one imports which, and no module imports in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

from support.paths import ROOT

PACKAGE = ROOT / "fuseo1_kernels"
DESIGN = ROOT / "docs" / "design.md"
#: The row for modules that lie in no folder.
DOORS = "the root"


@cache
def table() -> dict[str, set[str]]:
    """What each folder may import by the table: the ground, what its row names, and what these may import."""
    section = DESIGN.read_text(encoding="utf-8").partition("\n## The folders\n")[2]
    rows = re.findall(r"^\| (.*?) \| .* \| (.*?) \|$", section.partition("\n## ")[0], re.MULTILINE)
    named = {row: set(re.findall(r"`([\w/]+)`", last)) for row, last in rows if row != "folder"}
    ground = set(re.findall(r"`(\w+)`", next(iter(named))))
    allowed = dict.fromkeys(ground, ground)
    for row, names in list(named.items())[1:]:
        folders = {name for name in names if not name.endswith("/")}
        reached = ground.union(folders, *(allowed[name] for name in folders))
        allowed[row.strip("`")] = reached
    return allowed


def folder_of(module: str) -> str:
    """The folder, as the table calls it, of a module such as "engine.cpu.pool"."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (folder := "/".join(parts[:length])) in table():
            return folder
    return DOORS


@cache
def modules() -> dict[str, Path]:
    """Every module by its name in the package; a folder's __init__ has the folder's name, the package's is ""."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(module: str) -> Iterator[str]:
    """The modules of the package that a module imports, wherever in its text."""
    file = modules()[module]
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        home = [*package[: len(package) + 1 - node.level], *(node.module or "").split(".")]
        source = ".".join(part for part in home if part)
        for name in node.names:
            whole = f"{source}.{name.name}".strip(".")
            yield whole if whole in modules() else source


def test_every_folder_has_a_row() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    loose = {path.stem for path in PACKAGE.glob("*.py")}
    assert folders <= table().keys() <= folders | loose | {"engine/cpu", "engine/gpu", DOORS}


def test_no_import_runs_up() -> None:
    wrong = []
    for module in modules():
        here = folder_of(module)
        for imported in imports(module):
            there = folder_of(imported)
            own = there == here or there.startswith(f"{here}/")
            if not own and there not in table()[here]:
                wrong.append(f"{module} imports {imported}")
    assert not wrong


def test_no_module_imports_in_a_circle() -> None:
    graph = {module: set(imports(module)) - {module} for module in modules()}
    assert sum(map(len, graph.values())) > 300
    assert tuple(TopologicalSorter(graph).static_order())
