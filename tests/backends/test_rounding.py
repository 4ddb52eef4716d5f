"""Every element is correctly rounded, whatever weights and votes are: the filter decides nothing wrongly."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuseo1_kernels.backends.contract import NOTHING, Elect, FuseParams
from support.emulated import load_emulated
from support.fuse_cases import ELECTS, fused
from support.near_ties import in_bf16, near_ties
from support.oracles import fuse as emulation
from support.pairwise import pairwise, sample
from support.paths import ROOT
from support.tensors import BF16, DTYPES, FP16, assert_same_bits

#: By name: what comes on top of weights and election.
MODES: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum": {"divisor": 1.0},
    "scaled": {"divisor": 1.7, "scale": 0.3, "base_scale": 1.3},
    "floored": {"floor_divisor": 0.9},
    "shares": {"shares": "reversed"},
    "alone": {"alone": "reversed"},
}
WEIGHTS = {
    "alike": lambda n: (1.0,) * n,
    "decimal": lambda n: tuple(0.1 + 0.7 * (i % 5) for i in range(n)),
    "of energies": lambda n: tuple((1 + i % 3) / 7 / n for i in range(n)),
    "huge ratios": lambda n: tuple(10.0 ** (-9 * (i % 3)) for i in range(n)),
}
TARGETS = (*range(1, 17), 33, 64)


def params_of(elect: Elect, weights: Sequence[float], mode: str) -> FuseParams:
    how = dict(MODES[mode])
    for key in how.keys() & {"shares", "alone"}:
        how[key] = tuple(weights)[::-1]
    return FuseParams(tuple(weights), elect=elect, **how)


# --- beside rational numbers ---


def exact(column: Sequence[float], params: FuseParams) -> Fraction | None:
    """The formula's value at one element, base first; None where the votes nearly cancel."""
    b, *x = (np.float32(v) for v in column)
    z = [v - b for v in x]
    t = [Fraction(w) * Fraction(float(v)) for w, v in zip(params.weights, z, strict=True)]
    if params.elect == "sum":
        s = z[0]
        for v in z[1:]:
            s = s + v
        votes: list[Any] = z
        sign = 1 if s >= 0 else -1
    else:
        votes = t
        signs = [(v > 0) - (v < 0) for v in t]
        total = Fraction(sum(signs)) if params.elect == "count" else sum(t, Fraction())
        if params.elect == "weighted" and abs(total) < sum(map(abs, t), Fraction()) / 10**14:
            return None
        sign = 1 if total >= 0 else -1
    alive = [bool(v) if params.elect == "none" else v * sign > 0 for v in votes]
    base = Fraction(params.base_scale) * Fraction(float(b))
    if not any(alive):
        return base
    num = sum(v for v, a in zip(t, alive, strict=True) if a)
    if params.alone and alive.count(True) == 1:
        num *= Fraction(params.alone[alive.index(True)])
    shares = params.shares or params.weights
    den = sum(Fraction(v) for v, a in zip(shares, alive, strict=True) if a)
    by = Fraction(params.divisor or 0) or max(den, Fraction(params.floor_divisor)) or 1
    return base + Fraction(params.scale) * num / by


def is_rounded(out: torch.Tensor, value: Fraction) -> bool:
    """Whether no other number of the dtype is nearer to `value`, by more than 1e-7 of half their distance."""
    if out.isinf():
        return (value > 0) == (out > 0).item() and abs(value) > torch.finfo(out.dtype).max
    here = Fraction(out.item())
    if value == here:
        return True
    towards = torch.tensor(torch.inf if value > here else -torch.inf, dtype=out.dtype)
    there = torch.nextafter(out, towards).item()
    if not np.isfinite(there):
        return False
    half = abs(Fraction(there) - here) / 2
    return abs(value - here) <= half * (1 + Fraction(1, 10**7))


@pytest.mark.parametrize("case", sample(itertools.product(ELECTS, TARGETS), 5), ids=str)
def test_the_nearest_number(case: tuple[Elect, int]) -> None:
    elect, targets = case
    numel = 2000 // (targets + 3)
    kinds = itertools.product(DTYPES, itertools.islice(zip(itertools.cycle(WEIGHTS), MODES), 5))
    for dtype, (weights, mode) in kinds:
        params = params_of(elect, WEIGHTS[weights](targets), mode)
        fine = near_ties(numel, params.weights, dtype, targets)
        for inputs in (fine, in_bf16(fine)):
            merged = fused("cpu", inputs, params, dtype)
            assert_same_bits(fused("reference", inputs, params, dtype), merged)
            columns = torch.stack([t.double() for t in inputs]).T.tolist()
            values = [exact(column, params) for column in columns]
            assert sum(value is None for value in values) <= numel * 3 // 4
            wrong = [
                (column, out.item())
                for column, out, value in zip(columns, merged, values, strict=True)
                if value is not None and not is_rounded(out, value)
            ]
            assert not wrong, f"{len(wrong)} of {numel} by {params}, such as {wrong[0]}"


# --- beside the definition, which every backend computes for itself ---


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    elect=st.sampled_from(ELECTS),
    weights=st.one_of(
        st.sampled_from([1.0, 0.3, 2.0**-40]).flatmap(
            lambda w: st.integers(1, 9).map(lambda n: (w,) * n)
        ),
        st.lists(st.floats(2.0**-30, 2.0**10), min_size=1, max_size=9).map(tuple),
        st.lists(st.floats(-2.0, 2.0).filter(bool), min_size=1, max_size=5).map(tuple),
    ),
    mode=st.sampled_from(tuple(MODES)),
    dtype=st.sampled_from((BF16, FP16)),
    coarse=st.booleans(),
)
def test_the_definition(
    cpu: str,
    seed: int,
    elect: Elect,
    weights: tuple[float, ...],
    mode: str,
    dtype: torch.dtype,
    coarse: bool,
) -> None:
    params = params_of(elect, weights, mode)
    tensors = near_ties(1500, weights, dtype, seed)
    if coarse:
        tensors = in_bf16(tensors)
    expected = emulation.fuse(tensors, params, dtype)
    assert_same_bits(fused(cpu, tensors, params, dtype), expected)


@pairwise("elect, targets, mode", ELECTS, (1, 2, 3, 4, 5, 9), tuple(MODES), together=1)
def test_the_definition_on_gpus(elect: Elect, targets: int, mode: str) -> None:
    """In emulation: CUDA's kernels have the same filter."""
    from fuseo1_kernels.in_memory.ops import as_array

    backend = load_emulated()
    for kind, dtype in (("decimal", BF16), ("alike", FP16)):
        params = params_of(elect, WEIGHTS[kind](targets), mode)
        tensors = near_ties(1500, params.weights, dtype, targets)
        out = torch.empty(1500, dtype=dtype)
        backend.fuse([as_array(t) for t in tensors], params, as_array(out), 0, 1)
        assert_same_bits(out, emulation.fuse(tensors, params, dtype))


def _alike(*values: float) -> list[torch.Tensor]:
    """Base and targets, a block of each value: of which no element is sure to take the exact path."""
    return [torch.full((256,), x) for x in values]


def _votes_that_nearly_cancel() -> list[torch.Tensor]:
    """About 50000 and -70000, once in a block: by weights of 0.98 and 0.7, which one is elected is hard to tell."""
    votes = torch.full((2, 16, 16, 256), 10.1)
    votes[0, ..., 0] = 50000.0 + torch.arange(16)[:, None] / 256
    votes[1, ..., 0] = -70000.0 - torch.arange(16) / 128
    return [torch.zeros(256 * 256), *votes.flatten(1)]


#: What the bounds do not cover, or not alone: parameters, inputs and the output's dtype.
BEYOND: dict[str, tuple[FuseParams, list[torch.Tensor], torch.dtype]] = {
    "a quotient overflows": (
        FuseParams((1.0,), divisor=1e-300, scale=1e-300),
        _alike(1.0, 1e30),
        BF16,
    ),
    "a quotient vanishes": (
        FuseParams((1.0, 1.0), elect="count", shares=(1e300, 1e300), scale=1e300),
        _alike(0.0, 1e-25, 1e-25),
        BF16,
    ),
    "a denormal grows": (
        FuseParams((2.0**-59,) * 5, shares=(0.0,) * 5, scale=2.0**59),
        _alike(2.0**-90, *(1.5 * 2.0**-90,) * 5),
        BF16,
    ),
    "a denormal grows by a floor": (
        FuseParams((2.0**-59,) * 5, shares=(0.0,) * 5, floor_divisor=2.0**-59),
        _alike(2.0**-90, *(1.5 * 2.0**-90,) * 5),
        BF16,
    ),
    "not finite and not selected": (
        FuseParams((1.0,), elect="none", masked=True, threshold=NOTHING),
        _alike(1.0, torch.nan),
        BF16,
    ),
    "an open element overflows": (
        FuseParams((0.98, 0.7), elect="weighted"),
        _votes_that_nearly_cancel(),
        FP16,
    ),
}


@pytest.mark.parametrize("what", BEYOND)
def test_beyond_the_bounds(cpu: str, what: str) -> None:
    params, tensors, dtype = BEYOND[what]
    assert_same_bits(fused(cpu, tensors, params, dtype), emulation.fuse(tensors, params, dtype))


@pytest.mark.parametrize("what", BEYOND)
def test_beyond_the_bounds_on_gpus(what: str) -> None:
    from fuseo1_kernels.in_memory.ops import as_array

    params, tensors, dtype = BEYOND[what]
    out = torch.empty(tensors[0].shape, dtype=dtype)
    bad = load_emulated().fuse([as_array(t) for t in tensors], params, as_array(out), 0, 1)
    assert_same_bits(out, emulation.fuse(tensors, params, dtype))
    assert bad == int((~out.isfinite()).sum())


# --- the bounds hold with room to spare, and are needed ---

_COUNT = """
import importlib.util, itertools, sys
spec = importlib.util.spec_from_file_location("_cpu", sys.argv[1])
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
sys.modules["fuseo1_kernels.backends._cpu"] = native
sys.path.append(sys.argv[2])
from support.fuse_cases import ELECTS, fused
from support.near_ties import near_ties
from support.oracles import fuse as emulation
from support.tensors import BF16, bits
from fuseo1_kernels.backends.contract import FuseParams
isas = native.available_isas()
for elect in ELECTS:
    wrong = dict.fromkeys(isas, 0)
    for targets, base in itertools.product((2, 3, 7, 48), (1.0, 0.0)):
        params = FuseParams(tuple(0.1 + 0.7 * i for i in range(targets)), elect=elect)
        tensors = near_ties(400_000 // targets, params.weights, BF16, targets)
        tensors[0] *= base  # the targets' mean is near the tie, too
        right = bits(emulation.fuse(tensors, params, BF16))
        for isa in isas:
            native.use_isa(isa)
            wrong[isa] += int((bits(fused("cpu", tensors, params, BF16)) != right).sum())
    for isa in isas:
        print(isa, elect, wrong[isa])
"""


BOUNDS = ("by_delta", "by_result", "by_votes")


@pytest.fixture(scope="module")
def built_apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the CPU's module is made of, configured in `build`."""
    copy = tmp_path_factory.mktemp("apart")
    for name in ("CMakeLists.txt", "fuseo1_kernels/version.py"):
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    for name in ("csrc", "python"):
        shutil.copytree(ROOT / name, copy / name)
    pybind = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
    )
    options = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"]
    options += [f"-Dpybind11_DIR={pybind.stdout.strip()}", "-DFUSEO1_CUDA=0"]
    options += [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={copy / 'made'}"]
    configure = ["cmake", "-S", str(copy), "-B", str(copy / "build"), *options]
    subprocess.run(configure, check=True, capture_output=True)
    return copy


@pytest.mark.slow
@pytest.mark.toolchain
@pytest.mark.parametrize(
    ("factor", "bounds", "wrong"),
    [
        pytest.param("8.0", BOUNDS, (), id="all wider"),
        pytest.param("0x1p-6", ("by_delta",), ELECTS, id="delta narrower"),
        pytest.param("0x1p-6", ("by_result",), ELECTS, id="result narrower"),
        pytest.param("0x1p-6", ("by_votes",), ("weighted",), id="votes narrower"),
    ],
)
def test_the_bounds(
    factor: str, bounds: Sequence[str], wrong: Sequence[Elect], built_apart: Path
) -> None:
    """With wider bounds no bit changes; if any one of them is too narrow, elections that need it go wrong."""
    text = (ROOT / "csrc/common/filter.h").read_text(encoding="utf-8")
    for bound in bounds:
        changed, count = re.subn(rf"{bound} = (.*)static_cast<float>\(", rf"\g<0>{factor} * ", text)
        assert count == 1
        text = changed
    (built_apart / "csrc/common/filter.h").write_text(text, encoding="utf-8")
    subprocess.run(
        ["cmake", "--build", str(built_apart / "build")], check=True, capture_output=True
    )
    (module,) = (built_apart / "made").glob("_cpu*.so")
    found = subprocess.run(
        [sys.executable, "-c", _COUNT, module, ROOT / "tests"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    counts = [line.split() for line in found.stdout.splitlines()]
    # On some instruction set: what rounds a quotient better may need less.
    went_wrong = {elect for _, elect, count in counts if int(count)}
    assert {elect for _, elect, _ in counts} == {*ELECTS} and went_wrong == {*wrong}, found.stdout
