"""Ctrl-C and SIGTERM at any moment, and two merges that want one OUT."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from support.checkpoint_files import tree
from support.forked import Ended, Forks, let_go, wait_for
from support.interrupted import (
    CHUNKED,
    TENSORS,
    WAYS,
    Place,
    Tree,
    alone,
    journaled,
    large_family,
    partial_of,
    undisturbed,
)
from support.models import Family

SEED = 20261122
INTERRUPTED = "fuseo1-merge: interrupted; nothing was written to {}\n"


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """Make the pipe in which a child reports that it has come to a point, and waits for an answer."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def check_interrupted(ended: Ended, place: Place) -> None:
    """It ended well, or left OUT as it was; what was complete is kept, and nothing else."""
    assert "Traceback" not in ended.err
    if ended.code == 0:
        assert alone(place.out) == place.expected
        return
    assert ended.code == 130, ended
    assert not place.is_published(killed=False)
    interrupted = INTERRUPTED.format(place.out)
    if journaled(place.out):
        kept = f"{partial_of(place.out)} keeps what was merged: the same command goes on"
        assert ended.err.startswith(interrupted) and kept in ended.err
    else:
        assert ended.err == interrupted
        if place.overwrite:
            assert alone(place.out) == place.old
        else:
            assert not place.out.parent.exists()
    place.check_continues()


@pytest.mark.parametrize(
    "way",
    ["overwrite", *(pytest.param(w, marks=pytest.mark.slow) for w in WAYS if w != "overwrite")],
)
def test_a_signal_at_every_call(way: str, forks: Forks, small: Family, expected: Tree) -> None:
    """Just before every call that changes the state on disk; in turn SIGINT and SIGTERM."""
    calls = Place(forks, small, f"{way} whole", way, expected).run(("count",)).calls
    assert len(calls) > 50
    publication = next(i for i, call in enumerate(calls) if call.endswith(".partial/model"))
    codes = []
    for nth in range(1, len(calls) + 1):
        if way != "new" and nth < publication and nth % 3:
            continue
        number = (signal.SIGINT, signal.SIGTERM)[nth % 2]
        place = Place(forks, small, f"{way} {nth}", way, expected)
        ended = place.run(("count", nth, "kill", number))
        codes.append(ended.code)
        check_interrupted(ended, place)
    # Once the step into place has begun it is finished.
    assert codes[0] == 130 and codes[-1] == 0


def test_signals_at_random_times(forks: Forks, tmp_path: Path, fifo: Path) -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    family = large_family(tmp_path)
    expected = undisturbed(family, *CHUNKED)
    slow = [("one_by_one",), ("slowly", 6e7, 0.02), ("announce", str(fifo))]

    def start(number: int) -> tuple[Place, float]:
        place = Place(forks, family, f"random {number}", "new", expected, CHUNKED)
        return place, rng.uniform(0, whole)

    whole = 0.0
    place, _ = start(0)
    child = place.start(*slow)
    wait_for(fifo)
    began = time.monotonic()
    assert child.wait().code == 0
    whole = time.monotonic() - began

    interrupted = 0
    for number in range(1, 13):
        place, delay = start(number)
        child = place.start(*slow)
        wait_for(fifo)
        time.sleep(delay)
        child.signal(rng.choice([signal.SIGINT, signal.SIGTERM]))
        ended = child.wait()
        print(f"merge {number}: {delay:.3f} s, exit code {ended.code}")
        interrupted += ended.code == 130
        check_interrupted(ended, place)
    assert interrupted >= 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_merge_stops_at_once(number: signal.Signals, forks: Forks, tmp_path: Path) -> None:
    """In the middle of a tensor that is merged in chunks, not at its end."""
    family = large_family(tmp_path)
    expected = undisturbed(family, *CHUNKED)
    argv = (*CHUNKED, "--threads", "1")
    whole = Place(forks, family, "whole", "new", expected, argv).run(("count",))
    writes = [i for i, call in enumerate(whole.calls, start=1) if call.startswith("pwritev")]
    chunks = len(writes) - (TENSORS - 1)
    assert chunks > 2
    place = Place(forks, family, "stopped", "new", expected, argv)
    ended = place.run(("slowly", 3e7, 0), ("count", writes[0], "kill", number))
    assert ended.code == 130
    # The worker may have begun the next chunk when the main thread heard of it.
    assert sum(call.startswith("pwritev") for call in ended.calls) <= 2
    check_interrupted(ended, place)


def test_a_second_ctrl_c(forks: Forks, small: Family, expected: Tree, fifo: Path) -> None:
    """While it is waited for a worker that is busy: no traceback, and the same command goes on."""
    os.mkfifo(fifo.with_name("stopping"))
    place = Place(forks, small, "twice", "new", expected)
    calls = Place(forks, small, "twice whole", "new", expected).run(("count",)).calls
    nth = [i for i, call in enumerate(calls, start=1) if call.startswith("pwrite ")][-2]
    child = place.start(
        ("count", nth, "pause", 0, str(fifo)),
        ("announce_end", str(fifo.with_name("stopping"))),
    )
    wait_for(fifo)
    child.signal(signal.SIGINT)
    wait_for(fifo.with_name("stopping"))
    child.signal(signal.SIGINT)
    let_go(fifo)
    ended = child.wait()
    assert ended.code == 130
    assert journaled(place.out) == TENSORS - 1
    check_interrupted(ended, place)


# --- two merges, one OUT -----------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--no-resume",), ("--overwrite",)])
@pytest.mark.parametrize("way", WAYS[:2])
def test_the_second_of_two_merges_is_refused(
    way: str, options: tuple[str, ...], forks: Forks, small: Family, expected: Tree, fifo: Path
) -> None:
    calls = Place(forks, small, f"{way} {options}", way, expected).run(("count",)).calls
    writes = [i for i, call in enumerate(calls, start=1) if call.startswith("write ")]
    for nth in (writes[0], writes[3], writes[-1], len(calls) - 4):
        place = Place(forks, small, f"{way} {options} {nth}", way, expected)
        first = place.start(("count", nth, "pause", 0, str(fifo)))
        wait_for(fifo)
        before = tree(place.out.parent)
        second = forks.run(small.config, place.out, *place.options, *options)
        assert second.code == 1
        assert f"{partial_of(place.out)}: another merge is writing here" in second.err
        assert tree(place.out.parent) == before
        let_go(fifo)
        ended = first.wait()
        assert ended.code == 0, ended
        assert alone(place.out) == expected


def test_a_lock_goes_with_its_process(
    forks: Forks, small: Family, expected: Tree, fifo: Path
) -> None:
    place = Place(forks, small, "locked", "new", expected)
    child = place.start(("count", 30, "pause", 0, str(fifo)))
    wait_for(fifo)
    child.signal(signal.SIGKILL)
    assert child.wait().code == -signal.SIGKILL
    place.check_continues()


def test_three_at_once(forks: Forks, small: Family, expected: Tree, tmp_path: Path) -> None:
    """Let go together: one makes the model, the others are refused or find it.

    How often they meet is chance; that one who comes while another writes is refused is tested above.
    """
    for number in range(12):
        place = Place(forks, small, f"race {number}", "new", expected)
        lines = [tmp_path / f"{number} {runner}" for runner in range(3)]
        runners = []
        for line in lines:
            os.mkfifo(line)
            runners.append(place.start(("count", 1, "pause", 0, str(line))))
        for line in lines:
            wait_for(line)
        for line in lines:
            let_go(line)
        codes = []
        for ended in [runner.wait() for runner in runners]:
            codes.append(ended.code)
            if ended.code:
                assert ended.code == 1 and "Traceback" not in ended.err
                assert "another merge is writing here" in ended.err or "not empty" in ended.err
        assert 0 in codes
        assert alone(place.out) == expected
