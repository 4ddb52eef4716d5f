"""Misuse of the CPU backend and of its native module ends in an exception, never in a read out of bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fuseo1_kernels.backends import _cpu
from fuseo1_kernels.backends.contract import (
    Magnitudes,
)
from fuseo1_kernels.backends.cpu import CpuBackend
from fuseo1_kernels.in_memory.ops import as_arrays
from support.gpu.rows import Misfits
from support.survey_cases import LEAST
from support.tensors import BF16, FP16, FP32, siblings

refused = pytest.raises(ValueError, match="outside the contract")


def operands(tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    return [(a.address, a.dtype.abi) for a in as_arrays(tensors)]


class TestMisfits(Misfits):
    @pytest.fixture
    def gpu(self, cpu: str) -> CpuBackend:
        return CpuBackend()


SURVEYS: dict[str, Callable[[], object]] = {
    "no targets": lambda: _cpu.Survey(0, 8, 0.5, 0),
    "65 targets": lambda: _cpu.Survey(65, 8, 0.5, 0),
    "negative size": lambda: _cpu.Survey(1, -1, 0.5, 0),
    "topk above 1": lambda: _cpu.Survey(1, 8, 1.01, 0),
    "topk below 0": lambda: _cpu.Survey(1, 8, -0.01, 0),
    "topk NaN": lambda: _cpu.Survey(1, 8, float("nan"), 0),
    "negative memory": lambda: _cpu.Survey(1, 8, 0.5, -1),
    "negative rank": lambda: _cpu.Survey.magnitudes(8, [[-1]], 0),
    "no ranks": lambda: _cpu.Survey.magnitudes(8, [[]], 0),
    "ranks of no target": lambda: _cpu.Survey.magnitudes(8, [], 0),
    "ranks of 65 targets": lambda: _cpu.Survey.magnitudes(8, [[1]] * 65, 0),
    "magnitudes of a negative size": lambda: _cpu.Survey.magnitudes(-1, [[1]], 0),
    "magnitudes in negative memory": lambda: _cpu.Survey.magnitudes(8, [[1]], -1),
    "more ranks of one": lambda: _cpu.Survey.magnitudes(8, [[1], [1, 2]], 0),
    "no norms": lambda: _cpu.Survey.norms(8, []),
    "norms of no bits": lambda: _cpu.Survey.norms(8, [_cpu.Select.bits(0)]),
    "norms below a negative bound": lambda: _cpu.Survey.norms(8, [_cpu.Select.clamp(-1.0)]),
    "gram of no target": lambda: _cpu.Survey.gram(0, 8, False),
    "divergences of a gram": lambda: _cpu.Survey.gram(1, 0, False).divergences_of(),
}


@pytest.mark.parametrize("make", SURVEYS.values(), ids=SURVEYS)
def test_surveys_outside_the_contract(cpu: str, make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"outside the contract|not as many ranks"):
        make()


def test_answers_to_other_questions_are_refused(cpu: str) -> None:
    survey, inputs = _cpu.Survey.gram(1, 8, False), operands(siblings(8, 1, FP32))
    with pytest.raises(RuntimeError, match="not in this phase"):
        survey.sums()
    survey.run(inputs, 1)
    with refused:
        survey.cuts()
    sce = _cpu.Survey(1, 8, 0.5, 0)
    sce.run(inputs, 1)
    with refused:
        sce.sums()


def test_updates_outside_the_contract(cpu: str) -> None:
    tensors = siblings(1000, 2)
    native, good = _cpu.Survey(2, 1000, 0.5, 1 << 20), operands(tensors)
    with pytest.raises(RuntimeError, match="not in this phase"):
        native.result()
    with refused:  # it wants no sample
        native.update(good, 0, 256, 1)
    native.end_pass()
    for offset, count, threads in (
        *((1, 256, 1), (-256, 256, 1), (0, 1001, 1), (768, 256, 1), (0, 255, 1)),
        *((0, -1, 1), (0, 256, 0)),
    ):
        with refused:
            native.update(good, offset, count, threads)
    for bad in ([(0, 0)] * 3, [(a, 3) for a, _ in good]):
        with refused:
            native.update(bad, 0, 256, 1)
    with pytest.raises(ValueError, match="wrong number of operands"):
        native.update(good[:2], 0, 256, 1)
    native.update(good, 0, 1000, 1)
    native.end_pass()
    for call in (native.end_pass, lambda: native.update(good, 0, 1000, 1)):
        with pytest.raises(RuntimeError, match="not in this phase"):
            call()
    assert native.result()["passes"] == 1


@pytest.mark.parametrize("changed", [2, 3, 4], ids=["LOW", "TIES", "ENERGY"])
@pytest.mark.parametrize(
    "request_", [0.3, Magnitudes(((1000,),) * 3)], ids=["scores", "magnitudes"]
)
def test_data_that_change_between_passes_are_an_error(
    cpu: str, request_: float | Magnitudes, changed: int
) -> None:
    tied = as_arrays([torch.full((70_000,), x, dtype=FP16) for x in (0.0, 0.5, 1.0, 1.0)])
    zeros = as_arrays([torch.zeros(70_000, dtype=FP16)] * 4)
    surveyor = CpuBackend().surveyor(3, 70_000, request_, 2, LEAST)
    surveyor.sample([])
    for _ in range(changed):
        surveyor.update(tied, 0)
        surveyor.end_pass()
    surveyor.update(zeros, 0)
    with refused:
        surveyor.end_pass()


# --- fuse ---

_PARAMS = {
    "weights": (1.0, 1.0), "shares": (), "alone": (), "elect": _cpu.ELECT_SUM, "divisor": 0.0, "floor_divisor": 0.0,
    "scale": 1.0, "base_scale": 1.0, "selects": (), "masked": False, "threshold": 0, "tie_limit": -1,
}  # fmt: skip


def native(**changes: object) -> _cpu.FuseParams:
    return _cpu.FuseParams(**{**_PARAMS, **changes})  # type: ignore[arg-type]


def test_the_native_fuse_refuses_what_the_contract_excludes(cpu: str) -> None:
    tensors = siblings(512, 2)
    out = torch.empty(512, dtype=BF16)
    good = {
        "operands": operands(tensors), "params": native(), "offset": 0, "count": 512,
        "out": out.data_ptr(), "out_dtype": 0, "threads": 1,
    }  # fmt: skip
    assert _cpu.fuse(**good) == 0  # type: ignore[arg-type]
    for wrong in ({"shares": (1.0,)}, {"alone": (1.0,)}, {"selects": (_cpu.Select(),)}):
        with pytest.raises(ValueError, match="wrong number of shares, factors or selections"):
            native(**wrong)
    for bad in (
        *({"params": native(weights=(1.0,))}, {"offset": 1}, {"offset": -256}, {"count": -1}),
        *({"out_dtype": 3}, {"out": 0}, {"threads": 0}, {"operands": [(0, 0)] * 3}),
    ):
        with pytest.raises(ValueError):
            _cpu.fuse(**{**good, **bad})  # type: ignore[arg-type]
    clamp, two = _cpu.Select.clamp, 2
    for outside in (
        *({"elect": 4}, {"elect": -1}, {"selects": [_cpu.Select.bits(0)] * two}),
        *({"selects": [clamp(-1.0)] * two}, {"selects": [clamp(torch.nan)] * two}),
    ):
        with refused:
            _cpu.fuse(**{**good, "params": native(**outside)})  # type: ignore[arg-type]
