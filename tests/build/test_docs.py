"""The docs hold: docs/arithmetic.md is a program whose output must come out, and files that a page names exist.

Lines of prose are of one length, and docstrings say what a thing is or does.
"""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from fuseo1_kernels.backends.interface import Backend
from support.paths import ROOT

PAGES = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
]
#: Characters.
MOST_OF_A_LINE = 120
FOLDERS = (".ci", "bench", "csrc", "docs", "fuseo1_kernels", "python", "tests")
#: Files that the how-to pages have the reader write, and those that a merge or a build makes.
MADE = re.compile(
    r"dist|balanced|traced|one_tensor|NAME|FOLDER|bench/results/GPU|_cpu|_cuda|OUT|merge\.yaml|a\.yaml|config\.json"
)


@cache
def existing() -> set[str]:
    """Every end of every path in the repository: a page may leave out what its context says."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    paths += [ROOT / folder for folder in FOLDERS] + list(ROOT.glob("*.*"))
    ends = set()
    for path in paths:
        parts = path.relative_to(ROOT).parts
        slash = "/" if path.is_dir() else ""
        ends |= {"/".join(parts[start:]) + slash for start in range(len(parts))}
    return ends


def prose(text: str) -> str:
    """The text outside of code blocks."""
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL)


def names(text: str) -> Iterator[str]:
    """Yield each code span, outside of code blocks, that looks like a file or a folder of the repository."""
    for span in re.findall(r"`([^`\n]+)`", prose(text)):
        if re.fullmatch(r"[\w.]+(/[\w.]+)*(\.(py|h|cpp|cu|cuh|sh|md)|/)", span):
            yield span


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_on_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {name for name in names(text) if not MADE.search(name)}
    absent = named - existing()
    links = re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", text)
    dead = {link for link in links if not (page.parent / link).exists()}
    assert not absent | dead


def test_the_arithmetic_page_is_true() -> None:
    page = ROOT / "docs" / "arithmetic.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted >= 15
    assert result.failed == 0


def test_the_backend_of_the_how_to_page_is_whole() -> None:
    text = (ROOT / "docs" / "howto" / "add_a_backend.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(\"\"\".*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    (made,) = (node for node in ast.parse(code).body if isinstance(node, ast.ClassDef))
    given = {node.name for node in made.body if isinstance(node, ast.FunctionDef)} | {"name"}
    asked = {name for kind in Backend.__mro__ for name in vars(kind) if not name.startswith("_")}
    assert {"survey", "fuse", "decode"} <= asked and asked <= given


def test_lines_of_prose_are_short() -> None:
    """Of a table each row is one line."""
    long = [
        f"{page.name}: {line}"
        for page in (*PAGES, ROOT / "CHANGELOG.md")
        for line in prose(page.read_text(encoding="utf-8")).splitlines()
        if len(line) > MOST_OF_A_LINE and not line.lstrip().startswith("|")
    ]
    assert long == []


def test_docstrings_say_what_a_thing_is_or_does() -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    riddles = [
        f"{path.name}: {text}"
        for path in (ROOT / "fuseo1_kernels").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, documented) and (text := ast.get_docstring(node))
        if re.match(r"(What|Which|Where)\b", text)
    ]
    assert riddles == []
