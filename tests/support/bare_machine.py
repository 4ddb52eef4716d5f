"""Python as on a GPU machine that has what bench/gpu.sh asks for and nothing else (CONTRIBUTING.md).

    python -m support.bare_machine [--and DISTRIBUTION,...] MODULE ARGUMENTS...

runs a module, such as pytest, as if no other third-party package were installed, but for those that are named.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any, ClassVar

from packaging.requirements import Requirement  # pytest brings it
from packaging.utils import canonicalize_name

#: Distributions that are there; so is what they need.
THERE = ("numpy", "torch", "triton", "pybind11", "cmake", "ninja", "pytest")


def with_needs(distributions: Sequence[str]) -> set[str]:
    """Their names, and those of all that they need, as far as it is installed here."""
    found: set[str] = set()
    left = [*distributions]
    while left:
        name = str(canonicalize_name(left.pop()))
        if name in found:
            continue
        try:
            needs = [Requirement(need) for need in metadata.requires(name) or ()]
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        left += [n.name for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    return found


class Installed(PathFinder):
    """Finds what is there: modules and, for plugins of pytest, distributions."""

    there: ClassVar[set[str]]
    #: Packages that nothing that is there installs.
    absent: ClassVar[set[str]]

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None if name in cls.absent else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context: Any) -> Iterable[metadata.PathDistribution]:
        found = super().find_distributions(*context)
        return [d for d in found if canonicalize_name(d.metadata["Name"]) in cls.there]


def hide_all_but(distributions: Sequence[str]) -> None:
    Installed.there = with_needs(distributions)
    Installed.absent = {
        package
        for package, of in metadata.packages_distributions().items()
        if package != "fuseo1_kernels" and Installed.there.isdisjoint(map(canonicalize_name, of))
    }
    sys.meta_path[sys.meta_path.index(PathFinder)] = Installed


if __name__ == "__main__":
    del sys.argv[0]
    brought: list[str] = []
    if sys.argv[0] == "--and":
        brought = sys.argv[1].split(",")
        del sys.argv[:2]
    hide_all_but([*THERE, *brought])
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
