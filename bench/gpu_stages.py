"""The stages of bench/gpu.sh: build, tests, compute-sanitizer, benches, each within its own time, and a report of all.

    bench/gpu.sh [--quick]

A stage that fails is reported, and the next one runs all the same. The exit status is 1 if one failed or there was no
time for it, else 0: then all passed but those that the last line names, which were not run because packages are
missing that a bare GPU machine need not have (CONTRIBUTING.md).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from gpu_merge_report import WholeMerges, saved
from gpu_report import Findings, Stage, folders, gpu_name, markdown, publish, slug
from machine import commit
from report import WORK, parser

from fuseo1_kernels.bench.machine import utc_now

ROOT = Path(__file__).resolve().parent.parent
#: All of it, seconds: a lent machine is lent for ten minutes at a time.
SECONDS = 470.0
#: Under this a stage is not begun.
LEAST = 5.0
#: What a command may take to end when it is asked to.
GRACE = 5.0
TOOLS = ("nvcc", "cmake", "ninja", "compute-sanitizer", "nvidia-smi")
MODULES = ("torch", "numpy", "triton", "pybind11", "pytest")
#: What whole merges and their bench import besides; most are installed under these names.
MERGE_MODULES = ("pydantic", "yaml", "xxhash", "huggingface_hub", "tqdm", "psutil")
#: The tests of the engine make models with these, too (tests/support/models.py).
ENGINE_MODULES = (*MERGE_MODULES, "safetensors", "tokenizers")
_RESULTS = {True: "passed", False: "FAILED", None: "NOT RUN"}


@dataclass(frozen=True)
class Job:
    """A stage to come: commands that run one after the other, for at most `limit` seconds together.

    `reserve` of them are kept for it from those before. `together`: they run at the same time. FUSEO1_SECONDS tells
    a command how long it has.
    """

    name: str
    commands: Sequence[Sequence[str]]
    limit: float
    reserve: float = LEAST
    environment: Mapping[str, str] = field(default_factory=dict)
    together: bool = False
    # Packages that its commands import and a machine may lack: then the stage is not run.
    modules: Sequence[str] = ()


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
    """Run all jobs within `seconds`; calls `after_each` with the stages so far."""
    logs.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    stages: list[Stage] = []
    for number, job in enumerate(jobs):
        kept = sum(later.reserve for later in jobs[number + 1 :])
        limit = min(job.limit, deadline - time.monotonic() - kept)
        lacking = absent(job.modules)
        if lacking:
            note = f"not run: missing here: {' '.join(lacking)}; CONTRIBUTING.md: how to bring them"
            stages.append(Stage(job.name, None, 0.0, note))
        elif limit < LEAST:
            stages.append(Stage(job.name, None, 0.0, "not run: no time was left"))
        else:
            print(f"== {job.name} (at most {limit:.0f} s)", flush=True)
            stages.append(run(job, limit, logs / f"{job.name}.log"))
        print(f"   {_RESULTS[stages[-1].passed]}: {stages[-1].note}", flush=True)
        after_each(stages)
    return stages


def missing() -> list[str]:
    """The packages that the stages need and this machine lacks."""
    tools = [tool for tool in TOOLS if shutil.which(tool) is None]
    return tools + absent(MODULES)


def absent(modules: Sequence[str]) -> list[str]:
    return [m for m in modules if importlib.util.find_spec(m) is None]


def outcome(jobs: Sequence[Job], stages: Sequence[Stage]) -> tuple[int, str]:
    """The exit status, and a line that names what failed and what was not run."""
    failed, timeless, lacking = list[str](), list[str](), list[str]()
    for job, stage in zip(jobs, stages, strict=True):
        if stage.passed is False:
            failed.append(stage.name)
        elif stage.passed is None:
            (lacking if absent(job.modules) else timeless).append(stage.name)
    told = [f"{sum(stage.passed is True for stage in stages)} of {len(stages)} stages passed"]
    for names, words in (
        (failed, "FAILED"),
        (timeless, "NOT RUN, no time was left"),
        (lacking, "NOT RUN, packages are missing"),
    ):
        if names:
            told.append(f"{words}: {', '.join(names)}")
    return int(bool(failed or timeless)), "; ".join(told)


def jobs(architecture: str, quick: bool, results: Path) -> list[Job]:
    """All stages, for a GPU of `architecture` (what CUDAARCHS takes)."""
    python, build = sys.executable, WORK / "gpu-build"
    pytest = [python, "-m", "pytest", "-q", "-m", "", "-rfEs", "-p", "no:cacheprovider"]
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DFUSEO1_CUDA=1"),
        f"-DPython_EXECUTABLE={python}",
        f"-Dpybind11_DIR={_pybind11()}",
        f"-DCMAKE_CUDA_ARCHITECTURES={architecture}",
        # For compute-sanitizer to name lines; and each file's kernels compiled side by side.
        "-DCMAKE_CUDA_FLAGS=-lineinfo --split-compile=0",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'fuseo1_kernels'}",
    ]
    needed = {"FUSEO1_NEED_GPU": "1"}
    # Every tensor in an allocation of its own: what is beyond it, or was never written, is then seen.
    checked = needed | {"FUSEO1_SMALL_GRID": "1", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    native = ("backends/test_gpu", "backends/test_gpu_graphs", "build/test_machine_code")
    made = [
        Job("build", [configure, ["cmake", "--build", str(build), "--parallel"]], 200, 60),
        Job(
            "tests",
            # Triton's kernels are compiled as they are met: meanwhile the others are tested.
            [
                [*pytest, "-k", "not triton", *(f"tests/{f}.py" for f in native)],
                [*pytest, "-k", "triton", "tests/backends/test_gpu.py"],
                [*pytest, "-k", "cuda", "tests/in_memory/test_torch_ops.py"],
            ],
            150,
            40,
            needed | ({"FUSEO1_SMALL_GRID": "1"} if quick else {}),
            together=True,
        ),
    ]
    # torch asks the driver for what it may lack, and triton starts compilers: neither is an error.
    sanitizer = ["compute-sanitizer", "--report-api-errors=no", "--require-cuda-init=no"]
    on_triton = []
    for tool in ("memcheck", "racecheck", "initcheck"):
        command = [
            *sanitizer,
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            *pytest,
            "tests/backends/test_gpu.py",
        ]
        made.append(Job(tool, [[*command, "-k", "not triton"]], 60, 20, checked))
        on_triton.append([*command, "-k", "triton"])
    made.append(Job("the three, triton", on_triton, 60, 15, checked, together=True))
    engine = [*pytest, "tests/engine/gpu/test_on_gpu.py"]
    made.append(Job("engine", [engine], 60, 15, needed, modules=ENGINE_MODULES))
    less = ["--quick"] if quick else []
    bench = [python, "bench/gpu.py", "--results", str(results), *less]
    made.append(Job("bench", [bench], 120, 80))
    merge = [python, "bench/gpu_merge.py", "--results", str(results / "merge"), *less]
    made.append(Job("merge", [merge], 150, 80, modules=MERGE_MODULES))
    return made


def _pybind11() -> str:
    try:
        import pybind11
    except ImportError:
        return "not-found"  # CMake will say so
    return str(pybind11.get_cmake_dir())


def architecture() -> str | None:
    """CUDAARCHS, or machine code for the GPU here and nothing else."""
    told = gpu_name().get("capability", "").replace(".", "")
    return os.environ.get("CUDAARCHS") or (f"{told}-real" if told else None)


def findings(folder: Path) -> tuple[dict[str, str], Findings | None, WholeMerges]:
    """The results that bench/gpu.py and bench/gpu_merge.py wrote to `folder`, as far as there are any, and where."""
    machine, merges = saved(folder / "merge") or ({}, WholeMerges())
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["machine"], Findings.load(content["findings"]), merges
    return machine, None, merges


def main() -> int:
    options = parser(__doc__.splitlines()[0]).parse_args()
    lacking, wanted = missing(), architecture()
    if lacking:
        print(f"bench/gpu.sh: missing here: {', '.join(lacking)}; what needs them will fail")
    if wanted is None:
        print("bench/gpu.sh: nvidia-smi finds no GPU here; set CUDAARCHS to build all the same")
        return 1
    work = WORK / "gpu-results"
    shutil.rmtree(work, ignore_errors=True)
    where = folders(options.results, options.quick)
    machine = {"gpu": "no GPU", **gpu_name(), "commit": commit(), "date": utc_now()}

    def report(stages: list[Stage]) -> str:
        there, found, merges = findings(work)
        described = {**machine, **there}
        publish(where, described, stages, found, merges)
        return markdown(described, stages, found, merges)

    made = jobs(wanted, options.quick, work)
    stages = run_all(made, SECONDS, WORK / "gpu-logs", report)
    print(report(stages))
    for folder in where:
        _keep_logs(folder / f"{slug(machine['gpu'])}.log", stages)
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
