"""Runs a check on many examples: a few hundred, always the same, or ever new ones for FUSEO1_FUZZ_SECONDS."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

SECONDS = float(os.environ.get("FUSEO1_FUZZ_SECONDS", "0"))
FIRST_SEED = os.environ.get("FUSEO1_FUZZ_SEED")
TESTS = 8  # that share SECONDS
ROUND = 200  # examples of one seed
HANGS_AFTER = 10  # seconds; the largest examples have some 20 kB


def fuzz(
    strategy: st.SearchStrategy[Any],
    check: Callable[[Any], None],
    examples: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run `check` on `examples` of `strategy`, or on ever new ones until its share of time is up."""
    count = 0

    def counted(example: Any) -> None:
        nonlocal count
        count += 1
        with time_limit():
            check(example)

    test = settings(
        max_examples=ROUND if SECONDS else examples, suppress_health_check=list(HealthCheck)
    )(given(strategy)(counted))
    if not SECONDS:
        test()
        return
    end = time.monotonic() + SECONDS / TESTS
    number = int(FIRST_SEED or random.SystemRandom().randrange(2**32))
    while time.monotonic() < end:
        try:
            seed(number)(test)()
        except BaseException:
            print(f"found with FUSEO1_FUZZ_SEED={number}")
            raise
        number = random.SystemRandom().randrange(2**32)
    with capsys.disabled():
        print(f" {count} examples ", end="")


@contextmanager
def time_limit() -> Iterator[None]:
    """Make a failure of what would hang."""

    def stop(*_: object) -> None:
        raise AssertionError(f"not done after {HANGS_AFTER} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGS_AFTER)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check_text(text: str) -> None:
    """A message has no control sequence for the terminal, no half of a surrogate pair, and no excessive length."""
    assert text.replace("\n", "").isprintable()
    assert len(text) < 50_000
