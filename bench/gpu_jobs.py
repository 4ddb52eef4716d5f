"""The stages of bench/gpu.sh: their commands, in the order in which their results matter, and the time for each."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpu_kernels import KERNELS, configured
from gpu_report import gpu_name
from report import WORK

ROOT = Path(__file__).resolve().parent.parent
#: Under this a stage is not begun.
LEAST = 5.0
TOOLS = ("nvcc", "cmake", "ninja", "compute-sanitizer", "nvidia-smi")
MODULES = ("torch", "numpy", "triton", "pybind11", "pytest")
#: What whole merges and their bench import besides; most are installed under these names.
MERGE_MODULES = ("pydantic", "yaml", "xxhash", "huggingface_hub", "tqdm", "psutil")
#: The tests of the engine make models with these, too (tests/support/models.py).
ENGINE_MODULES = (*MERGE_MODULES, "safetensors", "tokenizers")
#: The test that fills half of a GPU, and as much of the host: nothing else may run beside it.
LARGE = "more_than_two_to_the_31"


@dataclass(frozen=True)
class Job:
    """A stage to come: commands that run one after the other, for at most `limit` seconds together.

    `reserve` of them are kept for it from those before, if it can run. `together`: the commands run at the same time.
    FUSEO1_SECONDS tells a command how long it has.
    """

    name: str
    commands: Sequence[Sequence[str]]
    limit: float
    reserve: float = LEAST
    environment: Mapping[str, str] = field(default_factory=dict)
    together: bool = False
    # Packages that its commands import, tools, and stages that must have passed: without them it is not run.
    modules: Sequence[str] = ()
    tools: Sequence[str] = ()
    needs: Sequence[str] = ("build",)

    def hindrance(self, failed: Iterable[str] = ()) -> str | None:
        """Why it cannot run; None if it can. `failed`: stages that have not passed."""
        lacking = absent_modules(self.modules)
        if lacking:
            return f"missing here: {' '.join(lacking)}; CONTRIBUTING.md: how to bring them"
        lacking = absent_tools(self.tools)
        if lacking:
            return f"missing here: {' '.join(lacking)}"
        broken = [name for name in self.needs if name in failed]
        return f"{broken[0]} has not passed" if broken else None

    def excused(self) -> bool:
        """Whether it lacks packages that a bare GPU machine need not have."""
        return not {*MODULES}.issuperset(absent_modules(self.modules))


def absent_modules(modules: Sequence[str]) -> list[str]:
    return [m for m in modules if importlib.util.find_spec(m) is None]


def absent_tools(tools: Sequence[str]) -> list[str]:
    return [tool for tool in tools if shutil.which(tool) is None]


def missing() -> list[str]:
    """The packages and tools that the stages need and this machine lacks."""
    return absent_tools(TOOLS) + absent_modules(MODULES)


def architecture() -> str | None:
    """CUDAARCHS, or machine code for the GPU here and nothing else."""
    told = gpu_name().get("capability", "").replace(".", "")
    return os.environ.get("CUDAARCHS") or (f"{told}-real" if told else None)


def jobs(architecture: str, quick: bool, results: Path) -> list[Job]:
    """All stages, for a GPU of `architecture` (what CUDAARCHS takes)."""
    python, build = sys.executable, WORK / "gpu-build"
    configure = configured(build, architecture, linked=KERNELS)
    pytest = [python, "-m", "pytest", "-q", "-m", "", "-rfEs", "-p", "no:cacheprovider"]
    gpu = "tests/backends/test_gpu.py"
    needed = {"FUSEO1_NEED_GPU": "1"}
    native = (gpu, "tests/backends/test_gpu_graphs.py")
    made = [
        Job(
            "build",
            [configure, ["cmake", "--build", str(build), "--parallel"]],
            *(200, 60),
            tools=("nvcc", "cmake", "ninja"),
            modules=("pybind11",),
            needs=(),
        ),
        Job(
            "tests",
            [
                [*pytest, "-k", f"not triton and not {LARGE}", *native],
                [*pytest, "-k", "cuda", "tests/in_memory/test_torch_ops.py"],
            ],
            *(120, 40),
            needed | ({"FUSEO1_SMALL_GRID": "1"} if quick else {}),
            together=True,
        ),
    ]
    less = ["--quick"] if quick else []

    def bench(backend: str) -> list[str]:
        to = ["--results", str(results / backend)]
        return [python, "bench/gpu.py", "--backend", backend, *to, *less]

    made.append(Job("bench", [bench("cuda")], 100, 50))
    # Every tensor in an allocation of its own: what is beyond it, or was never written, is then seen.
    checked = needed | {"FUSEO1_SMALL_GRID": "1", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

    def sanitized(tool: str) -> Job:
        # torch asks the driver for what it may lack, and torch's kernels are not the project's: neither is looked at.
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        command += [
            "--report-api-errors=no",
            "--require-cuda-init=no",
            "--kernel-name",
            "kns=fuseo1",
        ]
        tests = [*pytest, gpu, "-k", f"not triton and not {LARGE}"]
        return Job(tool, [[*command, *tests]], 60, 30, checked, tools=("compute-sanitizer",))

    made += [sanitized("memcheck"), sanitized("racecheck")]
    on_triton = [*pytest, "-k", f"triton and not {LARGE}", gpu]
    made += [
        Job("triton", [on_triton], 90, 20, needed, modules=("triton",)),
        Job("bench-triton", [bench("triton")], 60, 20, modules=("triton",)),
        Job(
            "engine",
            [[*pytest, "tests/engine/gpu/test_on_gpu.py"]],
            *(60, 15),
            needed,
            modules=ENGINE_MODULES,
        ),
        Job(
            "merge",
            [[python, "bench/gpu_merge.py", "--results", str(results / "merge"), *less]],
            *(150, 60),
            modules=MERGE_MODULES,
        ),
        Job("large", [[*pytest, "-k", f"{LARGE} and cuda", gpu]], 60, 15, needed),
        sanitized("initcheck"),
    ]
    return made
