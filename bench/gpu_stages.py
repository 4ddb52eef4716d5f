"""Runs the stages of bench/gpu.sh (gpu_jobs.py), each within its own time, and reports after each.

    bench/gpu.sh [--quick] [--seconds N] [--stages NAME,...]
    bench/gpu.sh --compile ARCHITECTURE

A stage that fails, hangs or cannot begin is reported, and the next one runs all the same. The exit status is 1 if one
failed or could not begin, else 0: then all passed but those that the last line names, which were not run because
packages are missing that a bare GPU machine need not have (CONTRIBUTING.md).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from gpu_jobs import LEAST, ROOT, Job, architecture, jobs, missing
from gpu_kernels import compile_kernels
from gpu_merge_report import WholeMerges, saved
from gpu_report import Findings, Stage, folders, gpu_name, markdown, publish, slug
from machine import commit
from report import WORK, parser

from fuseo1_kernels.backends.registry import GPU_BACKENDS
from fuseo1_kernels.bench.machine import utc_now

#: All of it, unless --seconds says more: a command on a lent machine is often ended after ten minutes.
SECONDS = 560.0
#: What a command may take to end when it is asked to.
GRACE = 5.0
_RESULTS = {True: "passed", False: "FAILED", None: "NOT RUN"}


def run(job: Job, limit: float, log: Path) -> Stage:
    """Run a job; its output goes to `log`, whose last line is the note."""
    start = time.monotonic()
    problem = None
    batches = [job.commands] if job.together else [[command] for command in job.commands]
    with log.open("wb") as output:
        for commands in batches:
            for command in commands:
                output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            left = limit - (time.monotonic() - start)
            environment = {**job.environment, "FUSEO1_SECONDS": f"{left:.0f}"}
            problem = _run(commands, environment, left, output)
            if problem:
                break
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line.strip() for line in lines if line.strip() and not line.startswith("$ ")]
    note = ": ".join(part for part in (problem, *told[-1:]) if part)
    return Stage(job.name, problem is None, round(time.monotonic() - start, 1), note[:200])


def _run(
    commands: Sequence[Sequence[str]],
    environment: Mapping[str, str],
    seconds: float,
    output: BinaryIO,
) -> str | None:
    """Run commands at the same time, with all that they start; returns what went wrong first."""
    deadline = time.monotonic() + seconds
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            try:
                started.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env={**os.environ, **environment},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            except OSError as error:
                return f"cannot start {command[0]} ({error.strerror})"
        statuses = [p.wait(max(deadline - time.monotonic(), 0.0)) for p in started]
    except subprocess.TimeoutExpired:
        return f"not done after {seconds:.0f} s"
    finally:
        for process in started:
            if process.poll() is None:
                _end(process)
    failed = [status for status in statuses if status]
    return f"exit status {failed[0]}" if failed else None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and what it started; ninja's compilers are in groups of their own, and it ends them when asked."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, number)
        try:
            process.wait(GRACE)
            return
        except subprocess.TimeoutExpired:
            continue


def run_all(
    jobs: Sequence[Job], seconds: float, logs: Path, after_each: Callable[[list[Stage]], object]
) -> list[Stage]:
    """Run all jobs within `seconds`; calls `after_each` with the stages so far.

    No time is kept for those that cannot run.
    """
    logs.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    stages: list[Stage] = []
    for number, job in enumerate(jobs):
        broken = [stage.name for stage in stages if not stage.passed]
        later = [other for other in jobs[number + 1 :] if not other.hindrance(broken)]
        limit = min(job.limit, deadline - time.monotonic() - sum(other.reserve for other in later))
        hindrance = job.hindrance(broken) or ("no time was left" if limit < LEAST else None)
        if hindrance:
            stages.append(Stage(job.name, None, 0.0, f"not run: {hindrance}"))
        else:
            print(f"== {job.name} (at most {limit:.0f} s)", flush=True)
            stages.append(run(job, limit, logs / f"{job.name}.log"))
        print(f"   {_RESULTS[stages[-1].passed]}: {stages[-1].note}", flush=True)
        after_each(stages)
    return stages


def outcome(jobs: Sequence[Job], stages: Sequence[Stage]) -> tuple[int, str]:
    """The exit status, and a line that names what failed and what was not run."""
    failed, unable, lacking = list[str](), list[str](), list[str]()
    for job, stage in zip(jobs, stages, strict=True):
        if stage.passed is False:
            failed.append(stage.name)
        elif stage.passed is None:
            (lacking if job.excused() else unable).append(stage.name)
    told = [f"{sum(stage.passed is True for stage in stages)} of {len(stages)} stages passed"]
    for names, words in (
        (failed, "FAILED"),
        (unable, "NOT RUN"),
        (lacking, "NOT RUN, packages are missing"),
    ):
        if names:
            told.append(f"{words}: {', '.join(names)}")
    return int(bool(failed or unable)), "; ".join(told)


def findings(folder: Path) -> tuple[dict[str, str], Findings | None, WholeMerges]:
    """The results that bench/gpu.py and bench/gpu_merge.py wrote to `folder`, as far as there are any, and where."""
    machine, merges = saved(folder / "merge") or ({}, WholeMerges())
    found: Findings | None = None
    for backend in GPU_BACKENDS:
        for path in (folder / backend).glob("*.json"):
            content = json.loads(path.read_text(encoding="utf-8"))
            machine = content["machine"] | machine
            part = Findings.load(content["findings"])
            if found is None:
                found = part
            else:
                found.add(part)
    return machine, found, merges


def main() -> int:
    arguments = parser(__doc__.splitlines()[0])
    add = arguments.add_argument
    add("--seconds", type=float, default=SECONDS, help="for all of it (default %(default)g)")
    add("--stages", metavar="NAMES", help="only these, with commas between them")
    add("--compile", metavar="ARCH", help="only compile the kernels, for a machine like 90-real")
    options = arguments.parse_args()
    if options.compile:
        return compile_kernels(options.compile, WORK / "gpu-kernels-build")
    lacking, wanted = missing(), architecture()
    if lacking:
        print(f"bench/gpu.sh: missing here: {', '.join(lacking)}; what needs them is not run")
    if wanted is None:
        print("bench/gpu.sh: nvidia-smi finds no GPU here; set CUDAARCHS to build all the same")
        return 1
    work = WORK / "gpu-results"
    made = jobs(wanted, options.quick, work)
    if options.stages:
        chosen = options.stages.split(",")
        unknown = [name for name in chosen if name not in [job.name for job in made]]
        if unknown:
            arguments.error(f"no stage {unknown[0]!r}: {', '.join(job.name for job in made)}")
        made = [job for job in made if job.name in chosen]
    else:
        shutil.rmtree(work, ignore_errors=True)
    where = folders(options.results, options.quick)
    machine = {"gpu": "no GPU", **gpu_name(), "commit": commit(), "date": utc_now()}

    def report(stages: list[Stage]) -> str:
        there, found, merges = findings(work)
        described = {**machine, **there}
        publish(where, described, stages, found, merges)
        for folder in where:
            _keep_logs(folder / f"{slug(machine['gpu'])}.log", stages)
        return markdown(described, stages, found, merges)

    # Only this process writes to $OUT: a bench's own report knows nothing of the stages before it.
    os.environ.pop("OUT", None)
    stages = run_all(made, options.seconds, WORK / "gpu-logs", report)
    print(report(stages))
    status, told = outcome(made, stages)
    print(f"bench/gpu.sh: {told}")
    return status


def _keep_logs(path: Path, stages: Sequence[Stage]) -> None:
    """The ends of the logs of what failed, in one file."""
    parts = []
    for stage in stages:
        log = WORK / "gpu-logs" / f"{stage.name}.log"
        if stage.passed is False and log.exists():
            text = log.read_text(encoding="utf-8", errors="replace")
            parts.append(f"===== {stage.name}\n{text[-200_000:]}\n")
    if parts:
        path.write_text("".join(parts), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
