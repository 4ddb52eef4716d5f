"""Every call of the C library on files fails once: the merge ends well, or with one message, and OUT whole or old."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator, Sequence

import pytest
import torch

from support.checkpoint_files import tree
from support.forked import Ended, Forks, forking
from support.interrupted import ARGV, Place, Tree, partial_of, undisturbed
from support.models import Family, State, make_family, tuned
from support.paths import TESTS
from support.tensors import BF16

pytestmark = pytest.mark.toolchain

ERRORS = {name: getattr(errno, name) for name in ("EIO", "ENOSPC", "EINTR", "EACCES")}
#: The calls that move bytes may move fewer than they were asked to.
SHORT = {"read", "write", "pread", "pread64", "preadv64v2", "pwrite64", "pwritev64v2", "sendfile64"}

#: In a merge into a new directory; the others are made where a model is replaced.
CALLS = {
    *("open64", "close", "stat64", "lstat64", "fstat64", "lseek64", "read", "pread", "pread64"),
    *("openat64", "fstatat64", "mkdir", "mkdirat", "rmdir", "renameat", "unlinkat", "readdir64"),
    *("write", "pwrite64", "pwritev64v2", "fsync", "ftruncate64", "flock", "fstatvfs64"),
    *("posix_fallocate64", "posix_fadvise64"),
}


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Forks children whose calls `faults.c` can let fail."""
    home = tmp_path_factory.mktemp("forks")
    library, source = home / "faults.so", TESTS / "support" / "faults.c"
    compiler = shutil.which("cc") or pytest.skip("no C compiler here")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    with forking(home, env={"LD_PRELOAD": str(library)}) as forks:
        yield forks


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Two tensors, of which one has pages of its own."""
    generator = torch.Generator().manual_seed(3)
    base: State = {
        f"model.{name}.weight": (torch.randn(shape, generator=generator) * 0.05).to(BF16)
        for name, shape in {"embed": (8, 16), "a": (5000,)}.items()
    }
    return make_family(tmp_path_factory.mktemp("family"), [base, tuned(base, 1)])


class Faults:
    """One way to OUT: its calls, and what becomes of a merge in which one fails."""

    def __init__(self, forks: Forks, family: Family, way: str, expected: Tree) -> None:
        self.forks, self.family, self.way, self.expected = forks, family, way, expected
        self.tried = 0
        ended = self.run(0, 0, self.place("counted"))
        assert ended.code == 0, ended
        self.calls = [call.split(" ")[0] for call in ended.calls]

    def place(self, name: str) -> Place:
        """A place for a merge, prepared as the way says."""
        way = "new" if self.way == "resumed" else self.way
        options = (*ARGV, "--max-memory", "64MiB")
        name = f"{self.way} {name}"
        place = Place(self.forks, self.family, name, way, self.expected, options, syncs=True)
        if self.way == "resumed":
            assert place.run(("kill_after", 1)).code < 0
        return place

    def run(self, nth: int, number: int, place: Place) -> Ended:
        return place.run(("fault", f"{self.family.home}/", nth, number))

    def check(self, nth: int, error: str) -> str | None:
        """Let the `nth` call fail; return what is wrong with the end, None if nothing is."""
        self.tried += 1
        place = self.place(f"{nth} {error}")
        ended = self.run(nth, ERRORS.get(error, -1), place)
        call, said = ended.calls[nth - 1].replace(f"{self.family.home}/", ""), ended.err
        one = said.count("error: ") == 1 and "Traceback" not in said and "Exception" not in said
        left = said.startswith("note: ") and said.endswith(" could not be deleted; remove it\n")
        if not (ended.code == 1 and one) and not (ended.code == 0 and (not said or left)):
            return f"{error} {call}: {ended}"
        there = tree(place.out) if place.out.exists() else None
        if there not in (
            [self.expected] if ended.code == 0 else [self.expected, place.old or None]
        ):
            return f"{error} {call}: OUT is neither old nor new: {ended}"
        if ended.code == 1 or left:
            again = place.run()
            names = [entry.name for entry in place.out.parent.iterdir()]
            if again.code or names != [place.out.name] or tree(place.out) != self.expected:
                return f"{error} {call}: not continued: {ended}{again}"
        elif partial_of(place.out).exists() and any(partial_of(place.out).iterdir()):
            return f"{error} {call}: OUT.partial is left"
        shutil.rmtree(place.out.parent)
        return None


def table(calls: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Every call, from 1, with every error that it can make."""
    for nth, call in enumerate(calls, 1):
        for error in (*ERRORS, *(["short"] if call in SHORT else [])):
            yield nth, error


def sample(calls: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Every call by name with every second error, and the next one with the others; at different places."""
    for number, name in enumerate(dict.fromkeys(calls)):
        places = [nth for nth, call in enumerate(calls, 1) if call == name]
        first = [error for nth, error in table(calls) if nth == places[0]]
        for chosen, error in enumerate(first):
            if (number + chosen) % 2 == 0 or error == "short":
                yield places[len(places) * chosen // 5], error


def test_each_call_and_error(forks: Forks, family: Family) -> None:
    faults = Faults(forks, family, "new", undisturbed(family, *ARGV))
    assert set(faults.calls) >= CALLS
    wrong = [said for case in sample(faults.calls) if (said := faults.check(*case))]
    assert not wrong, "\n".join(wrong)
    assert faults.tried >= 2 * len(CALLS)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["new", "resumed", "overwrite", "overwrite in two steps"])
def test_every_call(way: str, forks: Forks, family: Family) -> None:
    faults = Faults(forks, family, way, undisturbed(family, *ARGV))
    wrong = [said for case in table(faults.calls) if (said := faults.check(*case))]
    print(f"{way}: {faults.tried} cases, of {len(faults.calls)} calls")
    assert not wrong, "\n".join(wrong)
