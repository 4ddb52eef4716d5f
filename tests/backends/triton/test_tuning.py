"""The tuner chooses the config of each launch of Triton's kernels. The tests wind its clock; no kernel runs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from fuseo1_kernels.backends.triton import tuning
from fuseo1_kernels.backends.triton.tuning import DEFAULT, SPACE, Config, Tuner

LARGE = 1 << 24
SLOWEST_FIRST = {config: float(len(SPACE) - i) for i, config in enumerate(SPACE)}


class Clock:
    """The device's: `passes` ms at every call of `op`, by config; `first` more at a config's first, which compiles."""

    def __init__(self) -> None:
        self.passes, self.first, self.now = SLOWEST_FIRST, 0.0, 0.0
        self.calls: Counter[Config] = Counter()
        self.held_up: tuple[Config, int] | None = None  # which call of which config, by 50 ms

    def op(self, config: Config) -> None:
        self.calls[config] += 1
        late = self.first if self.calls[config] == 1 else 0.0
        late += 50.0 if self.held_up == (config, self.calls[config]) else 0.0
        self.now += self.passes[config] + late


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at: float | None = None
            self.passed = False

        def record(self) -> None:
            self.at = clock.now

        def synchronize(self) -> None:
            self.passed = True

        def elapsed_time(self, end: Event) -> float:
            assert end.passed, "nobody waited for it"
            assert self.at is not None and end.at is not None
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return clock


def test_the_fastest_is_chosen(clock: Clock) -> None:
    for fastest in SPACE:
        clock.passes = {config: 2.0 - (config == fastest) for config in SPACE}
        clock.calls.clear()
        assert Tuner().choose("fuse", LARGE, clock.op) == fastest
        assert set(clock.calls) == {*SPACE}


def test_compiling_counts_for_nothing(clock: Clock) -> None:
    """Nor does one run that something else held up."""
    clock.first, clock.held_up = 1000.0, (SPACE[-1], 3)
    assert Tuner().choose("fuse", LARGE, clock.op) == SPACE[-1]


def test_what_was_chosen_is_kept_by_key(clock: Clock) -> None:
    tuner = Tuner()
    assert tuner.choose(("fuse", 3), LARGE, clock.op) == SPACE[-1]
    tried = clock.calls.copy()
    for numel in (1, LARGE, LARGE << 4):
        assert tuner.choose(("fuse", 3), numel, clock.op) == SPACE[-1]
    assert clock.calls == tried
    clock.passes = SLOWEST_FIRST | {SPACE[1]: 0.5}
    assert tuner.choose(("fuse", 4), LARGE, clock.op) == SPACE[1]
    assert tuner.choose(("fuse", 3), LARGE, clock.op) == SPACE[-1]
    assert Tuner().choose(("fuse", 3), LARGE, clock.op) == SPACE[1], "each tuner has its own"


def test_small_tensors_are_not_tried_out(clock: Clock) -> None:
    """And leave the choice to the first large one."""
    tuner = Tuner()
    assert tuner.choose("fuse", LARGE - 1, clock.op) == DEFAULT
    assert not clock.calls
    assert tuner.choose("fuse", LARGE, clock.op) == SPACE[-1] != DEFAULT


def test_a_capture_is_not_timed(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets what was found before, or DEFAULT, which is not kept."""
    tuner = Tuner()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert tuner.choose("fuse", LARGE, clock.op) == DEFAULT
    assert not clock.calls
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert tuner.choose("fuse", LARGE, clock.op) == SPACE[-1]
    tried = clock.calls.copy()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert tuner.choose("fuse", LARGE, clock.op) == SPACE[-1]
    assert clock.calls == tried


def test_a_fixed_config_is_taken_as_it_is(clock: Clock) -> None:
    fixed = Config(16, 1)
    for numel in (1, LARGE):
        assert Tuner(fixed).choose("fuse", numel, clock.op) == fixed
    assert not clock.calls


def test_an_op_that_fails_leaves_no_choice(clock: Clock) -> None:
    tuner = Tuner()

    def fails(config: Config) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        tuner.choose("fuse", LARGE, fails)
    assert tuner.choose("fuse", LARGE, clock.op) == SPACE[-1]


@pytest.mark.parametrize(("rows", "warps"), [(1, 1), (3, 1), (32, 1), (2, 0), (2, 16)])
def test_configs_that_there_are_not(rows: int, warps: int) -> None:
    with pytest.raises(ValueError, match="rows are 2, 4, 8 or 16, warps 1, 2, 4 or 8"):
        Config(rows, warps)


def test_the_family_is_tuned_by_its_targets_alone() -> None:
    assert tuning.general_config(8) == Config(4, 4)
    assert tuning.general_config(9) == Config(2, 4)
