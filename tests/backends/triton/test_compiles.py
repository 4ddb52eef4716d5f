"""All that the Triton backend launches compiles, for sm_80, sm_90, sm_120 and gfx942; what the code is like.

Nothing runs: what is looked at is PTX, and what NVIDIA's assembler, which Triton brings along, says of it.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.jit import JITFunction

from fuseo1_kernels.backends.arrays import Array
from fuseo1_kernels.backends.contract import (
    Band,
    Clamp,
    Divergences,
    Draw,
    FuseParams,
    Gram,
    Magnitudes,
    Norms,
    Ranked,
    Request,
    RowFactors,
)
from fuseo1_kernels.backends.triton import backend, divergences
from fuseo1_kernels.backends.triton.backend import TritonBackend
from fuseo1_kernels.backends.triton.tuning import SPACE, Config
from fuseo1_kernels.in_memory.ops import as_array as array
from support.gpu.grid import placed
from support.tensors import BF16, FP16, FP32

pytestmark = [
    pytest.mark.toolchain,
    pytest.mark.skipif(
        bool(triton.knobs.runtime.interpret), reason="the interpreter compiles nothing"
    ),
]

TARGETS = {
    "cuda:90": GPUTarget("cuda", 90, 32),
    "cuda:80": GPUTarget("cuda", 80, 32),
    "cuda:120": GPUTarget("cuda", 120, 32),
    "hip:gfx942": GPUTarget("hip", "gfx942", 64),
}
NUMEL, ROW = 5000, 2500
CONFIG = SPACE[0]
#: Kernels that read whole tensors, where speed counts.
SCES = {"scan_tiles", "fuse_tiles"}
SUMS = {"add_norms", "add_gram", "count_nonzero"}
STREAMING = {*SCES, *SUMS, "fuse_general_tiles"}
#: The fast run compiles for Hopper alone, and of the other kernels those with steps of their own.
FAST = {*STREAMING, "find_divergences", "settle", "count_digit"}
KERNELS = {
    *FAST,
    *("scan_carefully", "sample_scores", "measure_runs", "refine_bracket", "end_bracket"),
    *("count_ties", "find_cut", "add_selected", "take_params"),
}

Call = Callable[[TritonBackend, list[Array]], object]
Wanted = Callable[[str, dict[str, Any]], bool]


def sce(select_topk: float, variant: str) -> Call:
    def call(engine: TritonBackend, inputs: list[Array]) -> None:
        survey = engine.enqueue_survey(inputs, select_topk, variant)
        engine.enqueue_fuse(inputs, survey, array(torch.empty(NUMEL, dtype=BF16)))

    return call


def fused(params: FuseParams, dtype: torch.dtype = BF16) -> Call:
    out, count = array(torch.empty(NUMEL, dtype=dtype)), 1 + len(params.weights)
    return lambda engine, inputs: engine.fuse(inputs[:count], params, out, 0, 1)


def surveyed(request: Request, inputs: int = 4) -> Call:
    return lambda engine, all_inputs: engine.survey(all_inputs[:inputs], request, 1)


W, ROWS = (1.0, 0.5, 0.25), RowFactors(ROW, bytes(8))
BAND, DRAW, BY_ROWS, RANKED = Band(), Draw(1, 2), Band(rows=ROWS), Ranked(1, 0.2, 0.4, ROW)
TIES = FuseParams(W, elect="weighted", selects=(BAND,) * 3)
DARE = FuseParams(W, elect="none", divisor=1.0, selects=(DRAW,) * 3)
FAST_CALLS = (
    sce(0.5, "mergekit"),
    sce(1.0, "fuseo1"),
    fused(TIES),
    fused(DARE),
    surveyed(Norms((BAND, DRAW, None))),
    surveyed(Gram(of_inputs=True)),
    surveyed(Divergences(ROW), inputs=2),
    surveyed(Magnitudes(((2,),) * 3)),
)
CALLS = (
    *FAST_CALLS,
    surveyed(Magnitudes(((2,),), ROWS), inputs=2),
    surveyed(Norms((DRAW, RANKED, BY_ROWS))),
    surveyed(Gram()),
    fused(FuseParams(W, masked=True, floor_divisor=0.5)),
    fused(FuseParams(W), FP16),
    fused(
        FuseParams(
            W, elect="count", floor_divisor=0.5, masked=True, selects=(BAND, Clamp(0.5), RANKED)
        ),
        FP16,
    ),
    fused(FuseParams(W, elect="sum", divisor=2.0, masked=True, selects=(BAND,) * 3)),
    fused(FuseParams((1.0,), elect="none", divisor=1.0, selects=(BY_ROWS,))),
    fused(FuseParams((), elect="none", base_scale=0.5)),
)


@dataclass(frozen=True)
class Launch:
    name: str
    constants: dict[str, Any]
    warps: int
    asm: dict[str, Any]


class Driver:
    """A simulated driver answers what Triton asks when it compiles a launch."""

    def __init__(self, where: str) -> None:
        self.where = where

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.where]

    def get_current_device(self) -> int:
        return [*TARGETS].index(self.where)

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache that begins empty: what is tested is that things compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def aligned(inputs: int = 4) -> list[torch.Tensor]:
    return [torch.zeros(NUMEL, dtype=BF16)] * inputs


def misaligned() -> list[torch.Tensor]:
    """Of mixed dtypes."""
    dtypes = (BF16, FP32, FP16, BF16)
    return [placed(torch.zeros(NUMEL, dtype=d), 1, torch.device("cpu")) for d in dtypes]


def launches(
    where: str,
    calls: Sequence[Call],
    tensors: Sequence[torch.Tensor],
    wanted: Wanted = lambda name, options: True,
    config: Config = CONFIG,
) -> list[Launch]:
    """What the calls launch, as Triton specialises its arguments, compiled; only the launch itself is left out."""
    found: dict[str, Launch] = {}
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        if wanted(self.fn.__name__, options):
            kernel = run(self, *arguments, grid=grid, warmup=True, **options)
            constants = {
                self.arg_names[i]: value for (i, *_), value in kernel.src.constants.items()
            }
            found[kernel.hash] = Launch(
                self.fn.__name__, constants, kernel.metadata.num_warps, kernel.asm
            )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.runtime.driver, "_active", Driver(where))
        patch.setattr(JITFunction, "run", compile_only)
        patch.setattr(backend, "_device", lambda inputs: torch.device("cpu"))
        for call in calls:
            call(TritonBackend(config), [array(t) for t in tensors])
    assert found
    return [*found.values()]


def spills_nothing(launch: Launch, folder: Path) -> None:
    """By ptxas' report for sm_90."""
    (folder / "kernel.ptx").write_text(launch.asm["ptx"])
    command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", "--fmad=false", "kernel.ptx"]
    ran = subprocess.run([*command, "-o", "cubin"], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in ran.stderr, (launch.name, ran.stderr)


def check(launch: Launch, where: str) -> None:
    if where.startswith("hip"):
        assert launch.asm["hsaco"]
        return
    ptx, told = launch.asm["ptx"], (launch.name, launch.constants)
    assert launch.asm["cubin"]
    # Nothing is contracted, denormals are kept, divisions round correctly.
    assert not re.findall(r"\bfma\.|\.ftz|div\.(?:full|approx)", ptx), told


def in_the_fast_run(name: str, options: dict[str, Any]) -> bool:
    """Whole tiles, the last digit, and of searches SCE's."""
    of_all = options.get("WHOLE", True) and options.get("DIGIT", 2) == 2
    return name in FAST and of_all and options.get("OF", -1) == -1


@pytest.mark.parametrize(
    "where", ["cuda:90", *(pytest.param(f"cuda:{n}", marks=pytest.mark.slow) for n in (80, 120))]
)
def test_launches_compile(where: str, tmp_path: Path) -> None:
    found = launches(where, FAST_CALLS, aligned(), in_the_fast_run)
    assert {launch.name for launch in found} == FAST
    for launch in found:
        check(launch, where)
        if where == "cuda:90":
            spills_nothing(launch, tmp_path)
        told = launch.name, launch.constants
        if launch.name in STREAMING:
            wide = re.findall(r"ld\.global\S*\.v4\.b32", launch.asm["ptx"])
            # An input's block: 16 bytes a lane.
            assert len(wide) == 4 * launch.constants["ROWS"] // launch.warps, told
            # Those of sums.py count what is not finite themselves, and load it once more for that, with a mask.
            if launch.name not in SUMS:
                assert not re.findall(r"ld\.global\S*\.b16", launch.asm["ptx"]), told
        if launch.name == "find_divergences":
            polynomials_keep_their_numbers(launch.asm["ptx"])


def polynomials_keep_their_numbers(ptx: str) -> None:
    """None of them goes by way of fp32."""
    others = (divergences.LOG2_E, divergences.LN2, divergences.LN2_LOW, divergences.LEAST_SHARE)
    polynomials = (*divergences.EXP_FACTORS.value, *divergences.LOG_FACTORS.value)
    for number in (*polynomials, *(x.value for x in others)):
        assert f"0d{struct.pack('>d', number).hex().upper()}" in ptx


@pytest.mark.slow
@pytest.mark.parametrize("tensors", [aligned, misaligned])
@pytest.mark.parametrize("where", TARGETS)
def test_all_launches_compile(
    where: str, tensors: Callable[[], list[torch.Tensor]], tmp_path: Path
) -> None:
    found = launches(where, CALLS, tensors())
    assert {launch.name for launch in found} == KERNELS
    for launch in found:
        check(launch, where)
        if where == "cuda:90" and tensors is aligned:
            spills_nothing(launch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("config", SPACE[1:], ids=str)
def test_no_config_spills(config: Config, tmp_path: Path) -> None:
    def whole(name: str, options: dict[str, Any]) -> bool:
        return name in SCES and options["WHOLE"]

    for launch in launches("cuda:90", FAST_CALLS[:2], aligned(), whole, config):
        spills_nothing(launch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("targets", [8, 16])
def test_the_familys_configs_spill_nothing(targets: int, tmp_path: Path) -> None:
    """But for the 136 products of 16 inputs: they take seconds to compile."""
    norms, ranks = Norms((BAND,) * targets), Magnitudes(((2,),) * targets)
    calls = [surveyed(norms, targets + 1), surveyed(ranks, targets + 1)]
    for params in (TIES, DARE):
        selects = params.selects[:1] * targets
        calls.append(fused(replace(params, weights=(1.0,) * targets, selects=selects)))

    def whole(name: str, options: dict[str, Any]) -> bool:
        return name in STREAMING - SCES and options["WHOLE"]

    for launch in launches("cuda:90", calls, aligned(targets + 1), whole):
        spills_nothing(launch, tmp_path)
