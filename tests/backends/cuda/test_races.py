"""The emulation of CUDA sees what it is there to see: every one of its checks fails for a kernel that is at fault."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from support.emulated import KERNELS, program
from support.paths import TESTS

pytestmark = pytest.mark.toolchain

HOST = TESTS / "support/cuda_on_host"
#: Its exit status if it found a race.
RACE = 66


def outcome(path: Path, *arguments: str | int) -> subprocess.CompletedProcess[str]:
    options = f"halt_on_error=1:exitcode={RACE}:report_thread_leaks=0"
    env = {**os.environ, "TSAN_OPTIONS": options}
    command = [str(path), *map(str, arguments)]
    found = subprocess.run(command, env=env, capture_output=True, text=True)
    if "unexpected memory mapping" in found.stderr:  # of a kernel that scatters addresses widely
        command = ["setarch", "-R", *command]
        found = subprocess.run(command, env=env, capture_output=True, text=True)
    return found


def faulty(kernel: str, seed: int = 1) -> subprocess.CompletedProcess[str]:
    return outcome(program("faulty.cpp"), kernel, seed)


def written(kernel: str, seed: int = 1) -> list[int]:
    found = faulty(kernel, seed)
    assert found.returncode == 0, found.stderr
    return [int(line) for line in found.stdout.split()]


def test_a_sound_kernel_passes() -> None:
    sums = [sum(range(64, 96)), sum(range(96, 128)), sum(range(1, 33)), sum(range(33, 65))]
    expected = [sums[thread // 32] for thread in range(128)] * 4
    assert written("sound", 1) == written("sound", 2) == expected


@pytest.mark.parametrize(
    ("kernel", "call"),
    [
        ("shuffles_apart", "__shfl_sync"),
        ("sums_apart", "__reduce_add_sync"),
        ("barriers_apart", "__syncthreads"),
        ("one_has_left", "__ballot_sync"),
        ("barrier_and_shuffle", ""),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_threads_that_do_not_meet_are_named(kernel: str, call: str, seed: int) -> None:
    """The process ends, with the places of two of them."""
    found = faulty(kernel, seed)
    assert found.returncode == -signal.SIGABRT
    source = (HOST / "faulty.cpp").read_text(encoding="utf-8").splitlines()
    places = re.findall(r"thread \d+ at (\w+) \(\S*faulty\.cpp:(\d+)\)", found.stderr)
    for what, line in places:
        assert what.startswith(call) and what in source[int(line) - 1]
    if kernel == "one_has_left":
        assert len(places) == 1 and "thread 3 at its end" in found.stderr
    else:
        assert len(places) == 2
        assert (places[0] != places[1]) == (kernel != "sums_apart")
    assert ("by different ways" in found.stderr) == (kernel == "sums_apart")
    assert f"seed {seed}, launch 1" in found.stderr


@pytest.mark.parametrize(
    ("kernel", "told"),
    [
        ("ctas_apart", "CTAs meet at different calls"),
        ("one_cta_has_left", "CTAs wait for one that has ended"),
        ("may_not_wait", "the launch lets no CTA wait"),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_ctas_that_do_not_meet_are_told_of(kernel: str, told: str, seed: int) -> None:
    found = faulty(kernel, seed)
    assert found.returncode == -signal.SIGABRT
    assert told in found.stderr and "grid_group::sync" in found.stderr


def test_ctas_wait_for_each_other() -> None:
    """CTAs see what others wrote once they have met, and not before."""
    right = [thread + (thread + 128) % 512 for thread in range(512)]
    assert written("waits_for_ctas", 1) == written("waits_for_ctas", 2) == right
    assert written("lacks_wait") != right


def test_shared_memory_is_poison_until_it_is_written() -> None:
    """Also for a CTA that follows another in the same memory."""
    assert written("reads_unwritten") == [0xA5A5A5A5] * 512


@pytest.mark.parametrize("kernel", ["lacks_barrier", "lacks_syncwarp"])
def test_what_is_read_too_early_is_not_there(kernel: str) -> None:
    other = 64 if kernel == "lacks_barrier" else 1
    right = [thread ^ other for thread in range(128)] * 4
    found = written(kernel)
    assert {*found} - {*right} == {0xA5A5A5A5}


def test_a_seed_is_an_order_of_ctas_and_of_threads() -> None:
    orders = [written("tells_order", seed) for seed in range(1, 9)]
    assert orders[0] == written("tells_order", 1)
    ctas = {tuple(sorted(range(4), key=lambda cta: min(o[cta * 128 :][:128]))) for o in orders}
    assert len(ctas) > 2
    assert len({tuple(o) for o in orders}) == len(orders)


# --- with ThreadSanitizer ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_kernel_races(seed: int) -> None:
    found = outcome(program("every_kernel.cpp", sanitized=True, kernels=True), seed)
    assert found.returncode == 0, found.stderr
    assert {"1", "6"} <= {*re.findall(r"in (\d) reads", found.stdout)}, "not on every path"


FENCE, BARRIER = "  __threadfence();\n", "  __syncthreads();\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "removed"),
    [
        pytest.param(FENCE + BARRIER, BARRIER, id="fence before"),
        pytest.param(FENCE + BARRIER, FENCE, id="barrier before"),
        pytest.param(BARRIER + "  if (last)", "  if (last)", id="barrier after"),
        pytest.param("  if (last) __threadfence();\n", "", id="fence after"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_the_last_cta_needs_every_fence_and_barrier(
    line: str, removed: str, tmp_path: Path
) -> None:
    """Without any of them ThreadSanitizer tells of a race of is_last_cta's caller."""
    changed = tmp_path / "cuda"
    shutil.copytree(KERNELS, changed)
    state = changed / "state.cuh"
    text = state.read_text(encoding="utf-8")
    assert not line or text.count(line) == 1
    state.write_text(text.replace(line, removed) if line else text, encoding="utf-8")
    found = outcome(program("last_cta.cpp", sanitized=True, headers=changed, kept=tmp_path), 4)
    if not line:
        assert found.returncode == 0, found.stderr
        return
    assert found.returncode == RACE
    assert "data race" in found.stderr and "count_all" in found.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    ["reads_unwritten", "lacks_barrier", "lacks_syncwarp", "sound", "lacks_wait", "waits_for_ctas"],
)
def test_races_are_seen(kernel: str) -> None:
    found = outcome(program("faulty.cpp", sanitized=True), kernel, 1)
    races = kernel.startswith("lacks")
    assert found.returncode == (RACE if races else 0), found.stderr
    assert not races or f"in {kernel}" in found.stderr
