"""What is compiled of C++ for tests: when first needed, and kept by a digest of all that it was compiled from."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory

import pytest

from support.paths import ROOT

KEPT = ROOT / "build/emulated"


def built(
    name: str,
    sources: Mapping[Path, Sequence[str]],
    includes: Sequence[Path],
    link: Sequence[str] = (),
    kept: Path = KEPT,
) -> Path:
    """Return the path of the program or library `name`; `sources` have flags of their own."""
    if not which("g++"):
        pytest.skip("no C++ compiler here")
    folder = kept / _digest(sources, includes, link)
    target = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _build(target, sources, includes, link)
    return target


def has_library(name: str) -> bool:
    """Whether the compiler comes with a library; without a compiler, `built` skips the test."""
    if not which("g++"):
        return True
    asked = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True)
    return Path(asked.stdout.strip()).is_absolute()


def _digest(
    sources: Mapping[Path, Sequence[str]], includes: Sequence[Path], link: Sequence[str]
) -> str:
    found = hashlib.sha256(repr(([*sources.values()], link)).encode())
    found.update(subprocess.run(["g++", "--version"], capture_output=True, check=True).stdout)
    headers = [path for i in includes for path in sorted(i.rglob("*.*h"))]
    for path in (*sources, *headers):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _build(
    target: Path,
    sources: Mapping[Path, Sequence[str]],
    includes: Sequence[Path],
    link: Sequence[str],
) -> None:
    """Compile, each source by itself; the target appears whole."""
    included = [f"-I{i}" for i in includes]
    with TemporaryDirectory(dir=target.parent) as folder:
        objects = {source: f"{folder}/{source.stem}.o" for source in sources}
        compiling = [
            subprocess.Popen(
                ["g++", *flags, *included, "-x", "c++", "-c", str(source), "-o", objects[source]]
            )
            for source, flags in sources.items()
        ]
        assert [process.wait() for process in compiling] == [0] * len(objects)
        linked = Path(folder) / target.name
        subprocess.run(["g++", *link, *objects.values(), "-o", str(linked)], check=True)
        linked.rename(target)
