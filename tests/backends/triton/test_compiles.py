"""Every Triton kernel compiles ahead of time, for sm_80, sm_90, sm_120 and gfx942; what the code is like.

Nothing runs: what is looked at is PTX, and what NVIDIA's assembler, which Triton brings along, says of it.
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from fuseo1_kernels.backends.contract import (
    Band,
    Divergences,
    FuseParams,
    Gram,
    Magnitudes,
    Norms,
    Overlaps,
    RowFactors,
)
from fuseo1_kernels.backends.triton import (
    backend,
    divergences,
    energies,
    fuse_general,
    fuse_sce,
    sampling,
    scan,
    settle,
    sums,
    threshold,
)
from fuseo1_kernels.backends.triton.tuning import SPACE, Config, general_config
from fuseo1_kernels.in_memory.ops import as_array as array
from support.gpu.grid import placed

pytestmark = [
    pytest.mark.toolchain,
    pytest.mark.skipif(
        bool(triton.knobs.runtime.interpret), reason="the interpreter compiles nothing"
    ),
]

TARGETS = {
    "cuda:80": GPUTarget("cuda", 80, 32),
    "cuda:90": GPUTarget("cuda", 90, 32),
    "cuda:120": GPUTarget("cuda", 120, 32),
    "hip:gfx942": GPUTarget("hip", "gfx942", 64),
}
CPU = torch.device("cpu")
MIXED = ("*i16", "*fp32", "*fp16", "*i16")
# A kernel's parameters have the same type wherever they have the same name.
TYPES = {
    **dict.fromkeys(["state", "stripes", "bins", "records", "histogram", "histograms"], "*i64"),
    **dict.fromkeys(["result", "tie_limit"], "*i64"),
    **dict.fromkeys(["rare_tiles", "sample", "ties"], "*i32"),
    **dict.fromkeys(["numel", "capacity", "topk", "offset", "row"], "i64"),
    **dict.fromkeys(["runs", "stretches", "first"], "i32"),
    "exponents": "*u8",
    **dict.fromkeys(["numbers", "divergences"], "*fp32"),
    **dict.fromkeys(["given", "scalars"], "*fp64"),
    **dict.fromkeys(["selects", "counts"], "*i64"),
    "out": "*i16",
}

SHAPE = {"TARGETS": 3, "STRIPES": 32}
CONFIG = SPACE[0]
ROWS = {"ROWS": CONFIG.rows}
TILES = {**SHAPE, **ROWS}
SCAN = {**TILES, "OF": -1}
FUSE = {"WHOLE": True, "OUT": 0, "TARGETS": 3, **ROWS}
PLAIN, MASKED = {"MASKED": False, "FLOORED": False}, {"MASKED": True, "FLOORED": True}
DIGITS = {"TILE": 512, "OF": -1}
MAGNITUDES = {"TARGETS": 1, "OF": 0}
SETTLE = {**SHAPE, "SLOTS": 4}

# fuse_general.py's ELECT and DIVISOR, select.py's KINDS.
GENERAL = {"MASKED": False, "ALONE": False, **FUSE}
TIES = {"ELECT": 1, "KINDS": 0o111, "DIVISOR": 0}
DARE = {"ELECT": 3, "KINDS": 0o222, "DIVISOR": 3}
ARCEE = {"ELECT": 3, "KINDS": 0o6, "DIVISOR": 3, "TARGETS": 1}
VARIED = {"ELECT": 2, "KINDS": 0o541, "DIVISOR": 1}
PEFTS = {"ELECT": 0, "KINDS": 0o111, "DIVISOR": 2}
RAM = {"ELECT": 3, "KINDS": 0o111, "DIVISOR": 0, "ALONE": True}

#: Kernels that read whole tensors, where speed counts.
STREAMING = {
    "scan_tiles scored": (scan.scan_tiles, {"SCORED": True, **SCAN}),
    "scan_tiles all": (scan.scan_tiles, {"SCORED": False, **SCAN}),
    "fuse_tiles": (fuse_sce.fuse_tiles, {**FUSE, **PLAIN}),
    "fuse_tiles masked": (fuse_sce.fuse_tiles, {**FUSE, **MASKED}),
}
#: Those beyond SCE's, whose config is general_config's.
GENERAL_KERNELS = {
    "fuse_general_tiles ties": (fuse_general.fuse_general_tiles, {**GENERAL, **TIES}),
    "fuse_general_tiles dare": (fuse_general.fuse_general_tiles, {**GENERAL, **DARE}),
    "add_norms": (sums.add_norms, {**TILES, "WHOLE": True, "KINDS": 0o021}),
    "count_nonzero": (sums.count_nonzero, {**TILES, "WHOLE": True}),
    "add_gram": (sums.add_gram, {**TILES, "WHOLE": True, "OF_INPUTS": True}),
}
OTHERS = {
    "fuse_tiles fp16": (fuse_sce.fuse_tiles, {**FUSE, **PLAIN, "OUT": 1}),
    "fuse_tiles tail": (fuse_sce.fuse_tiles, {**FUSE, **MASKED, "WHOLE": False}),
    "fuse_general_tiles tail": (
        fuse_general.fuse_general_tiles,
        {**GENERAL, **VARIED, "WHOLE": False, "MASKED": True, "OUT": 1},
    ),
    "fuse_general_tiles sum": (
        fuse_general.fuse_general_tiles,
        {**GENERAL, **PEFTS, "MASKED": True},
    ),
    "fuse_general_tiles base": (fuse_general.fuse_general_tiles, {**GENERAL, **DARE, "TARGETS": 0}),
    "fuse_general_tiles alone": (fuse_general.fuse_general_tiles, {**GENERAL, **RAM}),
    "fuse_general_tiles by rows": (fuse_general.fuse_general_tiles, {**GENERAL, **ARCEE}),
    "find_divergences": (divergences.find_divergences, ROWS),
    "add_norms tail": (sums.add_norms, {**TILES, "WHOLE": False, "KINDS": 0o152}),
    "add_overlaps": (sums.add_overlaps, {**TILES, "WHOLE": True, "KINDS": 0o111}),
    "add_gram tail": (sums.add_gram, {**TILES, "WHOLE": False, "OF_INPUTS": False}),
    "scan_tiles magnitudes": (scan.scan_tiles, {**SCAN, **MAGNITUDES, "SCORED": True}),
    "scan_carefully magnitudes": (scan.scan_carefully, {**SCAN, "OF": 2, "SCORED": True}),
    "sample_scores magnitudes": (sampling.sample_scores, MAGNITUDES),
    "count_digit magnitudes": (
        threshold.count_digit,
        {**SHAPE, **DIGITS, **MAGNITUDES, "DIGIT": 1},
    ),
    "scan_tiles by rows": (scan.scan_tiles, {**SCAN, **MAGNITUDES, "SCORED": True}),
    "scan_carefully by rows": (scan.scan_carefully, {**SCAN, **MAGNITUDES, "SCORED": True}),
    "sample_scores by rows": (sampling.sample_scores, MAGNITUDES),
    "count_nonzero by rows": (sums.count_nonzero, {**TILES, "TARGETS": 1, "WHOLE": False}),
    "find_cut by rows": (threshold.find_cut, MAGNITUDES),
    "scan_carefully scored": (scan.scan_carefully, {"SCORED": True, **SCAN}),
    "scan_carefully all": (scan.scan_carefully, {"SCORED": False, **SCAN}),
    "sample_scores": (sampling.sample_scores, {"TARGETS": 3, "OF": -1}),
    "measure_runs": (sampling.measure_runs, {}),
    "refine_bracket": (sampling.refine_bracket, {}),
    "end_bracket": (sampling.end_bracket, {"TARGETS": 3}),
    "count_digit first": (threshold.count_digit, {**SHAPE, **DIGITS, "DIGIT": 0}),
    "count_digit last": (threshold.count_digit, {**SHAPE, **DIGITS, "DIGIT": 2}),
    "count_ties": (threshold.count_ties, {**SHAPE, **DIGITS}),
    "find_cut": (threshold.find_cut, {"TARGETS": 3, "OF": -1}),
    "add_selected": (energies.add_selected, {**SHAPE, "TILE": 512}),
    "settle": (settle.settle, {**SETTLE, "SCORED": True, "ALL": False, "MERGEKIT": True}),
    "settle all": (settle.settle, {**SETTLE, "SCORED": False, "ALL": True, "MERGEKIT": False}),
    "take_params": (settle.take_params, {"TARGETS": 3, "SLOTS": 4}),
}
KERNELS = {**STREAMING, **GENERAL_KERNELS, **OTHERS}
#: Of a sample, at most 2^20 scores: Triton 3.6's spills 36 bytes, 3.9's nothing.
SPILL = {"refine_bracket"}

#: The fast run compiles for Hopper alone, and of kernels that are alike one.
FAST = {"scan_tiles scored", "fuse_tiles masked", "fuse_general_tiles ties"}
FAST |= {"add_norms", "settle"}
every_kernel = pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param(
            name,
            target,
            id=f"{name}-{where}",
            marks=() if name in FAST and where == "cuda:90" else pytest.mark.slow,
        )
        for name in KERNELS
        for where, target in TARGETS.items()
    ],
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache that begins empty: what is tested is that things compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def compiled(
    name: str, target: GPUTarget, inputs: tuple[str, ...] = (), warps: int = CONFIG.warps
) -> Any:
    """As a launch with 16-byte aligned pointers compiles it: with `warps` where a config says how many."""
    kernel, constants = KERNELS[name]
    inputs = inputs or ("*i16",) * (constants.get("TARGETS", 1) + 1)
    if name.endswith("by rows") and kernel is not fuse_general.fuse_general_tiles:
        inputs = (*inputs, "*i64")  # arithmetic.magnitude
    warps = warps if "ROWS" in constants else 4
    signature: dict[str, Any] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, parameter in enumerate(kernel.arg_names):
        if parameter in constants:
            signature[parameter] = "constexpr"
        elif parameter == "inputs":
            signature[parameter] = inputs
            aligned |= {(i, j): [["tt.divisibility", 16]] for j in range(len(inputs))}
        else:
            signature[parameter] = TYPES[parameter]
            if TYPES[parameter].startswith("*"):
                aligned[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    return triton.compile(source, target=target, options=options)


def assembled(ptx: str, folder: Path) -> str:
    """Return ptxas's report on registers and spills for sm_90."""
    (folder / "kernel.ptx").write_text(ptx)
    ran = subprocess.run(
        [
            get_ptxas(90).path,
            "-v",
            "--gpu-name=sm_90a",
            "--fmad=false",
            "kernel.ptx",
            "-o",
            "cubin",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


@every_kernel
def test_compiles(name: str, target: GPUTarget, tmp_path: Path) -> None:
    kernel = compiled(name, target)
    if target.backend != "cuda":
        assert kernel.asm["hsaco"]
        return
    ptx = kernel.asm["ptx"]
    assert kernel.asm["cubin"]
    # Nothing is contracted, denormals are kept, divisions round correctly.
    assert not re.findall(r"\bfma\.|\.ftz|div\.(?:full|approx)", ptx)
    if name in STREAMING or name in GENERAL_KERNELS:
        wide = re.findall(r"ld\.global\S*\.v4\.b32", ptx)
        assert len(wide) == 4 * CONFIG.rows // CONFIG.warps  # an input's block: 16 bytes a lane
        # Those of sums.py count what is not finite themselves, and load it once more for that, with a mask.
        if KERNELS[name][0].fn.__module__ != sums.__name__:
            assert len(re.findall(r"ld\.global\S*\.b16", ptx)) == 0
    if target.arch == 90 and name not in SPILL:
        said = assembled(ptx, tmp_path)
        assert "0 bytes spill stores, 0 bytes spill loads" in said, said


def test_polynomials_keep_their_numbers() -> None:
    """None of them goes by way of fp32."""
    ptx = compiled("find_divergences", TARGETS["cuda:90"]).asm["ptx"]
    others = (divergences.LOG2_E, divergences.LN2, divergences.LN2_LOW, divergences.LEAST_SHARE)
    polynomials = (*divergences.EXP_FACTORS.value, *divergences.LOG_FACTORS.value)
    for number in (*polynomials, *(x.value for x in others)):
        assert f"0d{struct.pack('>d', number).hex().upper()}" in ptx


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("name", ["scan_tiles scored", "fuse_tiles masked"])
def test_mixed_dtypes_compile(name: str, target: GPUTarget) -> None:
    assert compiled(name, target, MIXED).asm


def no_spills(
    kernels: dict[str, Any], config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (kernel, constants) in kernels.items():
        monkeypatch.setitem(KERNELS, name, (kernel, {**constants, "ROWS": config.rows}))
        inputs = ("*i16",) * (constants["TARGETS"] + 1)
        built = compiled(name, TARGETS["cuda:90"], inputs, config.warps)
        said = assembled(built.asm["ptx"], tmp_path)
        assert "0 bytes spill stores, 0 bytes spill loads" in said, said


@pytest.mark.slow
@pytest.mark.parametrize("config", SPACE[1:], ids=str)
def test_no_config_spills(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_spills(STREAMING, config, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("targets", [8, 16])
def test_the_familys_configs_spill_nothing(
    targets: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = {}
    for name, (kernel, constants) in GENERAL_KERNELS.items():
        of_all = {"TARGETS": targets}
        if "KINDS" in constants:
            of_all["KINDS"] = int(str(constants["KINDS"] & 7) * targets, 8)
        elif targets > 3:
            continue  # 136 products of 16 inputs: seconds to compile
        kernels[name] = kernel, {**constants, **of_all}
    no_spills(kernels, general_config(targets), tmp_path, monkeypatch)


class _Hopper:
    """A simulated driver answers what Triton asks when it compiles a launch."""

    def get_current_target(self) -> GPUTarget:
        return TARGETS["cuda:90"]

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.mark.slow
@pytest.mark.parametrize("by", [0, 1], ids=["aligned", "misaligned"])
def test_launches_compile(by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the backend launches, as Triton specialises its arguments; only the launch itself is left out."""
    launched = []
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        run(self, *arguments, grid=grid, warmup=True, **options)
        launched.append(self.fn.__name__)

    monkeypatch.setattr(triton.runtime.driver, "_active", _Hopper())
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(backend, "_device", lambda inputs: torch.device("cpu"))
    dtypes = (torch.bfloat16, torch.float32, torch.float16, torch.bfloat16)
    tensors = [placed(torch.zeros(5000, dtype=d if by else dtypes[0]), by, CPU) for d in dtypes]
    inputs, out = [array(t) for t in tensors], array(torch.empty(5000, dtype=torch.bfloat16))
    engine = backend.TritonBackend(CONFIG)
    for select_topk in (0.5, 1.0):
        engine.enqueue_fuse(inputs, engine.enqueue_survey(inputs, select_topk, "mergekit"), out)
    rows = RowFactors(2500, bytes(8))
    by_rows = Magnitudes(((2,),) * 3, rows), Norms((Band(rows=rows), None, None))
    for asked in (
        Norms((None,) * 3),
        Overlaps((None,) * 3),
        Gram(),
        Magnitudes(((2,),) * 3),
        *by_rows,
    ):
        engine.survey(inputs, asked, 1)
    engine.survey(inputs[:2], Divergences(2500), 1)
    engine.fuse(inputs, FuseParams((1.0, 0.5, 0.25)), out, 0, 1)
    engine.fuse(inputs, FuseParams((1.0, 0.5, 0.25), elect="weighted"), out, 0, 1)
    assert set(launched) == {kernel.fn.__name__ for kernel, _ in KERNELS.values()}
