"""Merges whose output is collected, and merges whose memory the system limits."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fuseo1_kernels.backends.registry import load_backend
from fuseo1_kernels.checkpoint.loader import open_source
from fuseo1_kernels.engine.cpu.memory import WorkerMemory
from fuseo1_kernels.engine.cpu.worker import CpuWorker
from fuseo1_kernels.engine.worker import MergeContext, TensorReport
from fuseo1_kernels.methods.rule import Rule
from fuseo1_kernels.plan.inputs import Stored
from fuseo1_kernels.plan.job import Job
from support.models import Family
from support.processes import spawn
from support.tuning import current
from support.watching import watch

MIB = 1 << 20

# Everything private and writable counts against RLIMIT_DATA, touched or not, thread stacks too.
LIMITED = (
    "import re, resource, sys\n"
    "from fuseo1_kernels.engine import merge\n"
    "from fuseo1_kernels.checkpoint.source import Source\n"
    "from fuseo1_kernels.cli.merge import main\n"
    "run, allowed, way = merge.run_plan, int(sys.argv.pop(1)), sys.argv.pop(1)\n"
    "if way != 'cached':\n"
    "    Source.is_cached = lambda self, info: False\n"
    "if way == 'direct':\n"
    "    from fuseo1_kernels.engine import run as engine_run\n"
    "    engine_run.free_memory = lambda: 0\n"
    "def limited(*args):\n"
    "    text = open('/proc/self/status').read()\n"
    "    used = int(re.search(r'VmData:\\s+(\\d+)', text)[1]) * 1024\n"
    "    resource.setrlimit(resource.RLIMIT_DATA, (used + allowed, used + allowed))\n"
    "    return run(*args)\n"
    "merge.run_plan = limited\n"
    "sys.exit(main())\n"
)
BUDGET = 8 * MIB
# Stacks of 512 KiB, of the worker, of its kernels' second thread and of a reader, and what their allocations
# make the C library reserve.
SLACK = 4 * MIB


class Collected:
    """Takes merged bytes, wherever they come."""

    def __init__(self, nbytes: int) -> None:
        self.data = bytearray(nbytes)
        self.written = 0

    def write(self, name: str, start: int, view: memoryview) -> None:
        self.data[start : start + view.nbytes] = view
        self.written += view.nbytes


def merge_tensor(
    family: Family,
    name: str,
    rule: Rule,
    memory: WorkerMemory,
    backend: str = "cpu",
    direct: bool = False,
) -> tuple[bytes, Job, TensorReport]:
    """Merge one tensor by a worker with so much memory; its bytes, and its report."""
    with ExitStack() as stack:
        sources = [stack.enter_context(open_source(str(path))) for path in family.models]
        inputs = tuple(Stored(source, source.tensors[name]) for source in sources)
        job = Job(name, inputs[0].info.shape, inputs[-1].dtype, inputs, rule)
        found = Collected(job.output_bytes)
        work = MergeContext(found, "error", lambda _: None, threading.Event(), tuning=current())
        worker = CpuWorker(load_backend(backend), memory, work, threads=lambda: 2)
        report = worker.merge(job, inputs if direct else ())
    assert found.written == job.output_bytes
    return bytes(found.data), job, report


def damaged_before(
    patch: pytest.MonkeyPatch, owner: Any, call: str, file: Path, damage: str
) -> str:
    """Let `file` shrink, or be rewritten, before `call` of `owner`; what is said of it, as a pattern."""

    def damaged(*_: object) -> None:
        if damage == "shrinks":
            os.truncate(file, 20_000)
        else:
            file.write_bytes(file.read_bytes())

    watch(patch, owner, call, damaged)
    said = r"shrank while tensor '\w+' was" if damage == "shrinks" else "the file changed since"
    return f"{file}: .*{said}"


def limited(
    family: Family, out: str, max_memory: int, way: str, budget: int = BUDGET
) -> tuple[int, str]:
    command = ["-c", LIMITED, budget + SLACK, way, family.config, family.home / out, "--quiet"]
    command += ["--threads", "2", "--max-memory", max_memory]
    small_stacks = "import os, resource, sys\n"
    small_stacks += "resource.setrlimit(resource.RLIMIT_STACK, (1 << 19, 1 << 19))\n"
    small_stacks += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    ran = spawn("-c", small_stacks, *command, env={"MALLOC_ARENA_MAX": "1"})
    return ran.code, ran.err
