"""Merges that were cut short: small models for them, and what must be true of what they leave."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels.checkpoint.header import TensorInfo
from fuseo1_kernels.checkpoint.source import Source
from support.checkpoint_files import tree
from support.forked import Child, Ended, Forks, Sabotage
from support.models import Family, State, make_family, tuned, write_model
from support.processes import done
from support.tensors import BF16

#: Three shards of the small family, one tensor after the other.
ARGV = ("--json", "--quiet", "--threads", "1", "--shard-size", "300")

#: For the large family.
CHUNKED = ("--json", "--quiet", "--threads", "2", "--max-memory", "13MiB")

TENSORS = 6

#: How a model comes to OUT: where nothing is, or instead of another, at once or (some file systems) in two steps.
WAYS = ("new", "overwrite", "overwrite in two steps")
#: As parameters; in the fast run the one that has all steps.
FAST_WAYS = [pytest.param(w, marks=() if w == "overwrite" else pytest.mark.slow) for w in WAYS]

#: A way and how far apart its points are (`points_of`): in the fast run fewer, of a way that has all steps.
EVERY_CALL = [
    ("overwrite", 8),
    *(pytest.param(way, 1 if way == "new" else 3, marks=pytest.mark.slow) for way in WAYS),
]


def points_of(calls: int, publication: int, every: int) -> list[int]:
    """Calls (from 1) at which a merge is cut short: until it is published a model comes about in the same way."""
    return [nth for nth in range(1, calls + 1) if nth >= publication or nth % every == 0]


Tree = dict[str, bytes | None]


def small_family(home: Path, **writing: Any) -> Family:
    """Six tensors, the models in two files each; `a` alone has a page that it shares with nothing."""
    shapes = {"embed": (8, 16), "a": (5000,), "b": (32, 4), "c": (129,), "d": (1,), "norm": (16,)}
    return _family(home, shapes, shards=2, **writing)


def large_family(home: Path, side: int = 32, **writing: Any) -> Family:
    """Five tensors of side x side, and one of 60 times as many elements: by `FINE` in chunks, and it is sampled."""
    shapes = {"w": (60, side * side), **dict.fromkeys("abcde", (side, side))}
    return _family(home, shapes, **writing)


def _family(home: Path, shapes: Mapping[str, tuple[int, ...]], **writing: Any) -> Family:
    g = torch.Generator().manual_seed(3)
    base: State = {
        f"model.{name}.weight": (torch.randn(shape, generator=g) * 0.05).to(BF16)
        for name, shape in shapes.items()
    }
    assert len(base) == TENSORS
    return make_family(home, [base, tuned(base, 1), tuned(base, 2)], **writing)


def undisturbed(family: Family, *argv: object) -> Tree:
    """Return the files of an undisturbed merge, in a directory that is called like `Family.out`."""
    out = family.home / "undisturbed" / family.out.name
    done(family.config, out, *argv)
    return tree(out)


def alone(out: Path) -> Tree:
    """Return the files in `out`; nothing may be beside it."""
    assert [entry.name for entry in out.parent.iterdir()] == [out.name]
    return tree(out)


def partial_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def journaled(out: Path) -> int:
    """How many tensors the journal of the merge into `out` has, by a reader of its own."""
    file = partial_of(out) / "journal"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []  # the last may be torn
    records = []
    for line in lines:
        with suppress(ValueError):  # a line that was torn, and ended by the next run
            records.append(json.loads(line.partition(b" ")[2]))
    return len({name for record in records for name in record.get("tensors", {})})


@contextmanager
def unreadable(file: Path, tensor: str) -> Iterator[None]:
    """EIO for every read by a kernel of a tensor in `file`: it reads this process's memory, where there is none."""
    real, memory = Source.place, os.open("/proc/self/mem", os.O_RDONLY)

    @contextmanager
    def place(self: Source, info: TensorInfo) -> Iterator[tuple[int, int]]:
        with real(self, info) as found:
            yield (memory, 1 << 60) if (info.file, info.name) == (file, tensor) else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Source, "place", place)
        yield
    os.close(memory)


class Place:
    """An OUT of its own, for one merge: `overwrite` puts an older model there."""

    def __init__(
        self,
        forks: Forks,
        family: Family,
        name: str,
        way: str,
        expected: Tree,
        options: tuple[object, ...] = ARGV,
        *,
        syncs: bool = False,
    ) -> None:
        self.forks, self.family, self.way, self.expected = forks, family, way, expected
        self.out = family.home / name / family.out.name
        self.old: Tree = {}
        self.options = options
        self.usual: list[Sabotage] = [("finely",), *([] if syncs else [("no_sync",)])]
        if self.overwrite:
            write_model(self.out, {"w": family.states[0]["model.embed.weight"].to(BF16)})
            self.old = tree(self.out)
            self.options = (*options, "--overwrite")

    @property
    def overwrite(self) -> bool:
        return self.way != "new"

    def start(self, *sabotage: Sabotage) -> Child:
        """The command, on a file system that can exchange directories or cannot."""
        unable = [("no_exchange",)] if self.way == "overwrite in two steps" else []
        return self.forks.start(
            self.family.config,
            self.out,
            *self.options,
            sabotage=[*self.usual, *unable, *sabotage],
        )

    def run(self, *sabotage: Sabotage) -> Ended:
        """The command, to its end."""
        return self.start(*sabotage).wait()

    def is_published(self, killed: bool = True) -> bool:
        """OUT is the new model, whole; if not, it is what it was, but for the moment between two steps."""
        there = tree(self.out) if self.out.exists() else None
        if killed and there is None and self.way == "overwrite in two steps":
            assert tree(partial_of(self.out) / "replaced") == self.old
            return False
        if there == self.expected:
            return True
        assert there == (self.old if self.overwrite else None)
        return False

    def check_continues(self) -> None:
        """The same command ends with the same bytes, and did again only what was not done."""
        published, complete = self.is_published(), journaled(self.out)
        again = self.run()
        assert again.code == 0, again
        assert alone(self.out) == self.expected
        if published and not self.overwrite:  # which is a new order when the journal is gone
            complete = TENSORS
        assert again.result["resumed"] == complete
        shutil.rmtree(self.out.parent)
