"""Files are opened as needed: a model may have more shards than a process may have open."""

from __future__ import annotations

import os
import random
import resource
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from fuseo1_kernels import merge_checkpoints, verify_model
from fuseo1_kernels.checkpoint.open_files import OpenFiles
from support.models import State, assert_same_state, base_state, make_family, read_model, tuned
from support.processes import MERGE, spawn

MOST = 10  # files, of which a quarter of the limit may be open


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may have few files open."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4 * MOST, 4 * MOST))


class File:
    def __init__(self, name: int) -> None:
        self.name = name
        self.is_open = True

    def close(self) -> None:
        assert self.is_open
        self.is_open = False


@pytest.mark.usefixtures("few")
def test_those_used_longest_ago_are_closed() -> None:
    synced: list[int] = []
    files: OpenFiles[File] = OpenFiles(lambda file: synced.append(file.name))
    opened: list[int] = []

    def use(name: int) -> File:
        def open_file() -> File:
            opened.append(name)
            return File(name)

        with files.using(name, open_file) as file:
            assert file.is_open and file.name == name
            return file

    kept = [use(name) for name in range(MOST)]
    use(0)
    for name in range(MOST, 2 * MOST - 1):
        use(name)
    assert [file.is_open for file in kept] == [True, *[False] * (MOST - 1)]
    assert synced == list(range(1, MOST)) and len(files) == MOST
    use(0)
    use(1)
    assert opened == [*range(2 * MOST - 1), 1]
    files.close()
    assert len(files) == 0 and not kept[0].is_open


@pytest.mark.usefixtures("few")
def test_what_is_in_use_stays_open() -> None:
    """By any number of threads, and more files than may be kept open."""
    files: OpenFiles[File] = OpenFiles()

    def use(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(300):
            name, other = chance.randrange(40), chance.randrange(40)
            with files.using(name, partial(File, name)) as file:
                with files.using(other, partial(File, other)) as second:
                    assert file.is_open and second.is_open and second.name == other
                assert file.is_open and file.name == name

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(use, range(16)))
    with files.using(99, partial(File, 99)):
        assert len(files) <= MOST


def test_a_file_that_cannot_be_opened_is_not_kept() -> None:
    files: OpenFiles[File] = OpenFiles()

    def fail() -> File:
        raise OSError

    with pytest.raises(OSError), files.using(1, fail):
        raise AssertionError
    with files.using(1, partial(File, 1)) as file:
        assert file.is_open


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("threads", [1, 4])
def test_a_merge_of_more_shards_than_may_be_open(threads: int, tmp_path: Path) -> None:
    base = base_state()
    states = [base, tuned(base, 1), tuned(base, 2)]
    family = make_family(tmp_path, states, shards=len(base), tokenizer={})
    before, most = len(os.listdir("/proc/self/fd")), 0

    class Watch:
        def start(self, title: str, total_bytes: int) -> None: ...
        def close(self) -> None: ...
        def advance(self, nbytes: int) -> None:
            nonlocal most
            most = max(most, len(os.listdir("/proc/self/fd")))

    merge_checkpoints(family.config, family.out, shard_size=1, threads=threads, progress=Watch())
    # Two descriptors for each file of a model, one for a shard of the output; workers may need more than that.
    assert most - before <= 3 * MOST + 3 * 2 * threads + 10
    assert_same_state(read_model(family.out), family.expected())
    assert verify_model(family.out).problems == ()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.slow
def test_models_of_thousands_of_shards(tmp_path: Path) -> None:
    count, limit = 3000, 256
    base: State = {f"model.layers.{i}.w": torch.full((16,), i / count) for i in range(count)}
    family = make_family(tmp_path, [base, tuned(base, 1), tuned(base, 2)], shards=count)
    ran = spawn(
        *(*MERGE, family.config, family.out, "--shard-size", "1", "--quiet"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
    )
    assert ran.code == 0, ran.err
    assert len([*family.out.glob("*.safetensors")]) == count
    assert_same_state(read_model(family.out), family.expected())
