"""`max_bytes` is a promise: whatever the data, a survey takes no more memory, and finds the same."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels.backends import _cpu
from support.pairwise import pairwise
from support.paths import ROOT
from support.tensors import BF16, FP32, ISAS, bits, require_isa, siblings

pytestmark = pytest.mark.serial

N = 2_000_003
MAX_BYTES = 4 << 20
STACK = 1 << 20
# Not the survey's: what a thread's start takes, and how coarsely the system counts pages.
SLACK, SLACK_PER_THREAD = 256 << 10, 128 << 10

# Runs by itself, without torch: one survey under a limit on private writable memory, then one without. The inputs are
# files in memory, all pages present before anything is measured.
CHILD = r"""
import ctypes, dataclasses, json, mmap, os, resource, sys
from fuseo1_kernels.backends.arrays import DTYPES
from fuseo1_kernels.backends.arrays import Array
from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.backends.contract import Magnitudes

job = json.load(sys.stdin)
request = Magnitudes(tuple(map(tuple, job["ranks"]))) if job["ranks"] else 0.5
backend, inputs = load_backend("cpu"), []
for path in job["paths"]:
    with open(path, "rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    pages[:: mmap.PAGESIZE]
    dtype = next(d for d in DTYPES if d.name == job["dtype"])
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    inputs.append(Array(address, dtype, len(pages) // dtype.size, pages))

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field + ":"))

def survey(max_bytes, numel):
    parts = [x.part(0, numel) for x in inputs]
    if job["chunk"] == 0:
        return backend.survey(parts, request, job["threads"], max_bytes)
    surveyor = backend.surveyor(len(parts) - 1, numel, request, job["threads"], max_bytes)
    surveyor.sample([])
    while not surveyor.done:
        for start in range(0, numel, job["chunk"]):
            count = min(job["chunk"], numel - start)
            surveyor.update([x.part(start, count) for x in parts], start)
        surveyor.end_pass()
    return surveyor.result()

def fields(survey):
    return {name: x for name, x in dataclasses.asdict(survey).items() if name != "divergences"}

numel = inputs[0].numel
survey(0, min(numel, 4 << 16))  # threads and code are there from now on
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
data, resident = status("VmData"), status("VmRSS")
limit = resource.getrlimit(resource.RLIMIT_DATA)
resource.setrlimit(resource.RLIMIT_DATA, (data + job["max_bytes"] + job["slack"], limit[1]))
try:
    bounded = fields(survey(job["max_bytes"], numel))
except MemoryError:
    sys.exit("more memory was asked for than was promised")
peak = status("VmHWM") - resident
resource.setrlimit(resource.RLIMIT_DATA, limit)
free = fields(survey(1 << 40, numel))
json.dump({"peak": peak, "bounded": bounded, "free": free}, sys.stdout)
"""


def spread() -> list[torch.Tensor]:
    return siblings(N, 3)


def light() -> list[torch.Tensor]:
    """A light fine-tune in bf16: few different scores."""
    return siblings(N, 3, rms=2e-5)


def one_tie() -> list[torch.Tensor]:
    """A single score, everywhere: the exact path with a cut."""
    return [torch.full((N,), x, dtype=BF16) for x in (0.0, 0.5, 1.0, 1.0)]


def deceitful() -> list[torch.Tensor]:
    """The sample sees scores so far apart that nearly all others lie in its bracket."""
    base, *targets = siblings(N, 3, FP32)
    starts, length = _cpu.Survey(3, N, 0.5, MAX_BYTES).sample_runs()
    sampled = (torch.tensor(starts)[:, None] + torch.arange(length)).flatten()
    far = torch.where(torch.arange(sampled.numel()) % 2 == 0, 1e-3, 1e3)
    for t in targets:
        t[sampled] = base[sampled] + (t - base)[sampled] * far
    return [base, *targets]


def sixty_four() -> list[torch.Tensor]:
    """Candidates of 260 bytes, and all scores alike."""
    numel = 200_000
    return [torch.full((numel,), i % 3 / 4, dtype=BF16) for i in range(65)]


Make = Callable[[], list[torch.Tensor]]
ONE_CUT, TWO_CUTS = (N // 5,), (N * 9 // 10, N // 100)
# (tensors, elements of a chunk, ranks of each target's |d| or none: of scores, reads)
_CASES: tuple[tuple[Make, int, tuple[int, ...], tuple[int, ...]], ...] = (
    (spread, 0, (), (1,)),
    (spread, 1 << 18, (), (4, 5)),  # unsampled: all elements are in the bracket
    (light, 0, (), (1, 4, 5)),
    (light, 1 << 18, (), (4, 5)),
    (one_tie, 0, (), (5,)),
    (deceitful, 0, (), (4,)),
    (sixty_four, 0, (), (5,)),
    (spread, 0, ONE_CUT, (1,)),
    (spread, 0, TWO_CUTS, (1,)),
    (spread, 1 << 18, TWO_CUTS, (4, 5)),
    (light, 0, ONE_CUT, (1, 4, 5)),
    (light, 1 << 18, ONE_CUT, (4, 5)),
    (one_tie, 0, TWO_CUTS, (1, 4, 5)),
)
CASES = {f"{make.__name__}-{chunk}-{len(r)}": (make, chunk, r, n) for make, chunk, r, n in _CASES}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], tuple[str, list[Path]]]:
    """The tensors of a case, in files: (dtype name, paths)."""
    made: dict[str, tuple[str, list[Path]]] = {}

    def store(make: Make) -> tuple[str, list[Path]]:
        if make.__name__ not in made:
            folder, tensors = tmp_path_factory.mktemp(make.__name__), make()
            paths = [folder / str(i) for i in range(len(tensors))]
            for path, tensor in zip(paths, tensors, strict=True):
                path.write_bytes(bits(tensor).numpy().tobytes())
            made[make.__name__] = str(tensors[0].dtype).removeprefix("torch."), paths
        return made[make.__name__]

    return store


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
@pairwise("name, isa, threads", tuple(CASES), ISAS, (1, 4), together=1)
def test_a_survey_stays_within_its_memory(  # type: ignore[no-untyped-def]
    stored, name: str, isa: str, threads: int
) -> None:
    """One for magnitudes has so much for every cut."""
    require_isa(isa)
    make, chunk, ranks, passes = CASES[name]
    dtype, paths = stored(make)
    cuts = [ranks] * (len(paths) - 1) if ranks else []
    max_bytes = MAX_BYTES * max(len(cuts) * len(ranks), 1)
    slack = SLACK + threads * (STACK + SLACK_PER_THREAD)
    job = {
        "paths": [str(p) for p in paths], "dtype": dtype, "ranks": cuts, "threads": threads, "chunk": chunk,
        "max_bytes": max_bytes, "slack": slack,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        # One malloc arena and small stacks: of a thread's address space only what is used counts.
        env={**os.environ, "FUSEO1_ISA": isa, "MALLOC_ARENA_MAX": "1"},
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_STACK, (STACK, resource.getrlimit(resource.RLIMIT_STACK)[1])
        ),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["peak"] <= max_bytes + SLACK + threads * SLACK_PER_THREAD
    assert found["bounded"].pop("passes") in passes
    assert found["free"].pop("passes") >= 1
    assert found["bounded"] == found["free"]


# The lent memory holds all elements as candidates; the process cannot allocate as much again.
LENT = r"""
import array, ctypes, resource, sys
from fuseo1_kernels.backends import _cpu

n = 1 << 20
x = [array.array("f", (k * step % 1009 for k in range(n))) for step in (0, 7919, 104729)]
room = ctypes.create_string_buffer(48 << 20)
operands = [(numbers.buffer_info()[0], 2) for numbers in x]
magnitudes = sys.argv[1] == "magnitudes"

def found(lent):
    ranks = [[n // 2], [n // 3]]
    survey = _cpu.Survey.magnitudes(n, ranks, 1 << 40) if magnitudes else _cpu.Survey(2, n, 0.5, 1 << 40)
    if lent:
        survey.lend((ctypes.addressof(room), len(room)))
    survey.end_pass()  # unsampled
    while survey.phase != _cpu.SURVEY_DONE:
        survey.update(operands, 0, n, 1)
        survey.end_pass()
    result = survey.result()
    assert result["passes"] == 1, result
    return result, survey.cuts() if magnitudes else ()

free = found(lent=False)
with open("/proc/self/status") as lines:
    data = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
resource.setrlimit(resource.RLIMIT_DATA, (data + (4 << 20), resource.RLIM_INFINITY))
assert found(lent=True) == free, "with memory lent"
try:
    found(lent=False)
except MemoryError:
    sys.exit(0)
sys.exit("the limit made no difference")
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize("kind", ["scores", "magnitudes"])
def test_with_memory_lent_none_of_its_own_is_needed(kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", LENT, kind], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
