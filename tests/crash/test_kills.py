"""SIGKILL at any moment, the renames included: OUT is old or new, and the same command ends as if undisturbed."""

from __future__ import annotations

import itertools
import random
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from support.checkpoint_files import tree
from support.forked import Forks
from support.interrupted import (
    ARGV,
    CHUNKED,
    EVERY_CALL,
    FAST_WAYS,
    TENSORS,
    WAYS,
    Place,
    Tree,
    alone,
    journaled,
    large_family,
    partial_of,
    points_of,
    undisturbed,
)
from support.models import Family

SEED = 20261121


@pytest.mark.parametrize(("way", "every"), EVERY_CALL)
def test_before_every_call(
    way: str, every: int, forks: Forks, small: Family, expected: Tree
) -> None:
    """Every call that changes the state on disk is one that was never made, or (a write) half done."""
    whole = Place(forks, small, f"{way} whole", way, expected)
    ended = whole.run(("count",))
    assert ended.code == 0, ended
    assert alone(whole.out) == expected
    calls = [call.split(" ")[0] for call in ended.calls]
    check_coverage(way, calls, ended.calls)

    publication = ended.calls.index(f"fsync {partial_of(whole.out)}/model")
    points = [
        (nth, action)
        for nth in points_of(len(calls), publication, every)
        for action in (["kill", "tear"] if "write" in calls[nth - 1] else ["kill"])
    ]
    assert {"kill", "tear"} == {action for _, action in points} and len(points) >= 20
    for nth, action in points:
        place = Place(forks, small, f"{way} {nth} {action}", way, expected)
        killed = place.run(("count", nth, action))
        assert killed.code == -signal.SIGKILL, killed
        assert kinds(call.split(" ")[0] for call in killed.calls) == kinds(calls[:nth])
        place.check_continues()
    print(f"{way}: killed at {len(points)} points of {len(calls)} calls")


def kinds(calls: Iterable[str]) -> list[str]:
    """In which order a directory is listed, and so deleted, is the file system's affair."""
    return ["delete" if call in ("unlink", "rmdir") else call for call in calls]


def check_coverage(way: str, calls: list[str], lines: Sequence[str]) -> None:
    """The calls that this test is about are among those that are counted."""
    needed = {"mkdir", "open", "flock", "ftruncate", "posix_fallocate", "write", "fsync"}
    assert needed | {"pwrite", "pwritev", "unlink", "rmdir"} <= set(calls)
    assert calls.count("_rename_exchange") == (way != "new")
    assert calls.count("rename") == {"new": 1, "overwrite": 0, "overwrite in two steps": 2}[way]
    # Every tensor is written, and noted, on its own, between the first two lines and the last.
    assert sum(line.startswith("write ") for line in lines) == 2 + TENSORS + 1


@pytest.mark.parametrize("way", FAST_WAYS)
def test_killed_again_and_again(way: str, forks: Forks, small: Family, expected: Tree) -> None:
    """Also while it takes up, puts back, or finishes what an earlier kill left."""
    rng = random.Random(SEED)
    whole = Place(forks, small, f"{way} counted", way, expected).run(("count",))
    last = len(whole.calls)
    kills = 0
    for first in [*range(last // 3, last - 16, 14), *range(last - 16, last, 2)]:
        place = Place(forks, small, f"{way} again {first}", way, expected)
        for nth in (first, rng.randint(1, 12), rng.randint(1, 30)):
            ended = place.run(("count", nth))
            kills += ended.code == -signal.SIGKILL
            assert ended.code in (0, -signal.SIGKILL), ended
            place.is_published()
        place.check_continues()
    assert kills >= 24
    print(f"{way}: {kills} kills")


def test_the_old_model_comes_back_first(forks: Forks, small: Family, expected: Tree) -> None:
    """Killed between the two steps: the next run puts the old model back, whatever becomes of its own merge."""
    way = WAYS[2]
    calls = Place(forks, small, "between whole", way, expected).run(("count",)).calls
    second = max(i for i, call in enumerate(calls, start=1) if call.startswith("rename "))
    place = Place(forks, small, "between", way, expected)
    assert place.run(("count", second)).code == -signal.SIGKILL
    assert not place.out.exists()
    refused = forks.run(small.config, place.out, *ARGV)
    assert refused.code == 1 and "--overwrite" in refused.err
    assert tree(place.out) == place.old
    place.check_continues()


@pytest.mark.parametrize("wanted", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_at_random_times(wanted: int, forks: Forks, tmp_path: Path) -> None:
    """Real time, several threads, tensors in chunks: each merge is killed until it gets through."""
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    family = large_family(tmp_path)
    expected = undisturbed(family, *CHUNKED)
    slow = [("finely",), ("slowly", 6e6, 0.005)]

    began = time.monotonic()
    ended = forks.run(family.config, family.home / "timed" / "merged", *CHUNKED, sabotage=slow)
    whole = time.monotonic() - began
    assert ended.code == 0, ended

    resumed, kills = [], 0
    for number in itertools.count():
        out = family.home / f"random-{number}" / "merged"
        for _ in range(3):
            delay = rng.uniform(0, whole)
            child = forks.start(family.config, out, *CHUNKED, sabotage=slow)
            time.sleep(delay)
            child.signal(signal.SIGKILL)
            ended = child.wait()
            assert ended.code in (0, -signal.SIGKILL), ended
            kills += ended.code == -signal.SIGKILL
            print(f"merge {number}: {delay:.3f} s, exit code {ended.code}")
            assert not out.exists() or tree(out) == expected
        complete = TENSORS if out.exists() else journaled(out)
        ended = forks.run(family.config, out, *CHUNKED)
        assert ended.code == 0, ended
        assert alone(out) == expected
        assert ended.result["resumed"] == complete
        resumed.append(complete)
        if kills >= wanted:
            break
        assert number < 3 * wanted, "the merges end before they are hit"
    assert len(set(resumed)) > 1, "the kills do not spread"
    print(f"{kills} kills, {number + 1} merges")
