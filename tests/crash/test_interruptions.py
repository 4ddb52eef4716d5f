"""Ctrl-C and SIGTERM at any moment, and two merges that want one OUT."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fuseo1_kernels import merge_checkpoints, verify_model
from support.checkpoint_files import tree
from support.forked import Ended, Forks, let_go, wait_for
from support.interrupted import (
    ARGV,
    CHUNKED,
    EVERY_CALL,
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
from support.pairwise import pairwise
from support.processes import environment

SEED = 20261122
BOTH = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = "fuseo1-merge: interrupted; nothing was written to {}\n"
COMPLETE = "fuseo1-merge: interrupted; {} was complete by then\n"


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """Make the pipe in which a child reports that it has come to a point, and waits for an answer."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def check_interrupted(ended: Ended, place: Place, *numbers: int) -> None:
    """One message and exit code, of one of these signals; OUT is whole or as it was, and what was complete is kept."""
    assert ended.code in {128 + number for number in numbers}, ended
    if place.is_published(killed=False):
        assert ended.err == COMPLETE.format(place.out)
        assert alone(place.out) == place.expected
        return
    interrupted = INTERRUPTED.format(place.out)
    if ended.err == "fuseo1-merge: interrupted\n":  # before the command line was read
        interrupted = ended.err
    if journaled(place.out):
        kept = f"{partial_of(place.out)} keeps what was merged: the same command goes on"
        assert ended.err.startswith(f"{interrupted}fuseo1-merge: {kept}"), ended
        assert ended.err.count("\n") == 2
    else:
        assert ended.err == interrupted
        if place.overwrite:
            assert alone(place.out) == place.old
        else:
            assert not place.out.parent.exists()
    place.check_continues()


@pytest.mark.parametrize(("way", "every"), EVERY_CALL)
def test_a_signal_at_every_call(
    way: str, every: int, forks: Forks, small: Family, expected: Tree
) -> None:
    """Just before every call that changes the state on disk; in turn SIGINT and SIGTERM."""
    calls = Place(forks, small, f"{way} whole", way, expected).run(("count",)).calls
    assert len(calls) > 50
    publication = next(i for i, call in enumerate(calls) if call.endswith(".partial/model"))
    published = []
    for nth in points_of(len(calls), publication, every):
        number = BOTH[nth % 2]
        place = Place(forks, small, f"{way} {nth}", way, expected)
        ended = place.run(("count", nth, "kill", number))
        published.append(place.is_published(killed=False))
        check_interrupted(ended, place, number)
    # Once the step into place has begun it is finished.
    assert not published[0] and published[-1] and published == sorted(published)


@pytest.mark.parametrize("points", [12, pytest.param(400, marks=pytest.mark.slow)])
def test_several_signals_at_any_call_of_python(
    points: int, forks: Forks, small: Family, expected: Tree
) -> None:
    """Inside locks, imports, context managers: the first ends the merge, the others do nothing."""
    whole = Place(forks, small, "counted", "new", expected).run(("signals_at", 0, (), 0))
    calls, rng = int(whole.calls[0]), random.Random(SEED)
    for point in range(points):
        numbers = rng.choices(BOTH, k=3)
        place = Place(forks, small, f"call {points} {point}", "new", expected)
        ended = place.run(("signals_at", (point + rng.random()) / points, numbers, calls))
        if ended.code:  # the command had not ended
            check_interrupted(ended, place, *numbers)


@pytest.mark.parametrize("processes", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_several_signals_to_a_process(
    processes: int, forks: Forks, small: Family, expected: Tree
) -> None:
    """From the import of its first module until after its exit, at random times."""
    rng = random.Random(SEED)
    for number in range(processes):
        place = Place(forks, small, f"process {processes} {number}", "new", expected)
        read, write = os.pipe()
        code = (
            f"import os, runpy; os.write({write}, b'.'); "
            "runpy.run_module('fuseo1_kernels.merge', run_name='__main__', alter_sys=True)"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, (small.config, place.out, *ARGV))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            pass_fds=[write],
        )
        os.read(read, 1)
        # The package itself comes before the first that answers signals.
        time.sleep(0.02 + rng.uniform(0, 0.5))
        numbers = rng.choices(BOTH, k=4)
        for signal_number in numbers:
            child.send_signal(signal_number)
            time.sleep(rng.choice((0, 0.001, 0.02)))
        out, err = child.communicate(timeout=60)
        os.close(read)
        os.close(write)
        if child.returncode:
            # Between the merge and its process's end, and in the first import, nothing is known of OUT.
            assert child.returncode in (130, 143) and err.count("interrupted") == 1, err
            assert "Traceback" not in err and "Exception" not in err, err
        else:
            assert err == "" and alone(place.out) == expected
        assert place.out.exists() or not out or "error" in json.loads(out)


class Signals:
    """A progress that sends signals, from a worker's thread, when the merge has begun."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def start(self, title: str, total_bytes: int) -> None:
        pass

    def advance(self, nbytes: int) -> None:
        while self.numbers:
            os.kill(os.getpid(), self.numbers.pop())
        time.sleep(0.02)

    def close(self) -> None:
        pass


def test_a_programs_own_handlers(small: Family, tmp_path: Path) -> None:
    """What they raise comes out of `merge_checkpoints`, and they are there afterwards; if they do not, it goes on."""
    out, heard = tmp_path / "new" / "out", []

    def remember(number: int, _frame: object) -> None:
        heard.append(number)

    def stop(number: int, frame: object) -> None:
        remember(number, frame)
        raise KeyboardInterrupt

    def merged(handler: Any, *numbers: int, thread: bool = False) -> bool:
        before = {number: signal.signal(number, handler) for number in BOTH}
        try:
            arguments = (str(small.config), out)
            if thread:
                with ThreadPoolExecutor(1) as pool:
                    return bool(pool.submit(merge_checkpoints, *arguments).result(60))
            merge_checkpoints(*arguments, progress=Signals(*numbers))
            return True
        except KeyboardInterrupt:
            return False
        finally:
            for number, own in before.items():
                assert signal.signal(number, own) is handler

    assert not merged(stop, *BOTH, *BOTH) and len(heard) == 1
    assert not out.parent.exists()
    heard.clear()
    assert merged(remember, signal.SIGINT, signal.SIGTERM) and sorted(heard) == sorted(BOTH)
    shutil.rmtree(out)
    assert merged(signal.SIG_IGN, *BOTH)
    shutil.rmtree(out)
    assert merged(signal.default_int_handler, thread=True)


@pytest.mark.parametrize("number", [BOTH[0], pytest.param(BOTH[1], marks=pytest.mark.slow)])
def test_a_merge_stops_at_once(number: signal.Signals, forks: Forks, tmp_path: Path) -> None:
    """In the middle of a tensor that is merged in chunks, not at its end."""
    family = large_family(tmp_path)
    expected = undisturbed(family, *CHUNKED)
    argv = (*CHUNKED, "--threads", "1")
    whole = Place(forks, family, "whole", "new", expected, argv).run(("count",))
    # Of the chunks alone: the other tensors fill no page.
    writes = [i for i, call in enumerate(whole.calls, start=1) if call.startswith("pwritev")]
    assert len(writes) > 2
    place = Place(forks, family, "stopped", "new", expected, argv)
    ended = place.run(("slowly", 5e5, 0), ("count", writes[0], "kill", number))
    # The worker may have begun the next chunk when the main thread heard of it.
    assert sum(call.startswith("pwritev") for call in ended.calls) <= 2
    check_interrupted(ended, place, number)


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
    assert journaled(place.out) == TENSORS - 1
    check_interrupted(ended, place, signal.SIGINT)


def test_a_check_is_interrupted(small: Family, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge_checkpoints(small.config, out)
    before = {number: signal.signal(number, signal.default_int_handler) for number in BOTH}
    try:
        with pytest.raises(KeyboardInterrupt):
            verify_model(out, progress=Signals(*BOTH, *BOTH))
        assert not verify_model(out).problems
    finally:
        for number, own in before.items():
            signal.signal(number, own)


# --- two merges, one OUT -----------------------------------------------------------------


@pairwise("way, options", WAYS[:2], ((), ("--no-resume",), ("--overwrite",)), together=1)
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
    for number in range(6):
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
