"""Whole merges by the Triton backend in Triton's interpreter, on a simulated GPU: the CPU's bytes, within the plan.

As interpreted_kernels.py, run by test_triton.py in a process of its own.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes
from triton.runtime.interpreter import GridExecutor

from fuseo1_kernels.backends.registry import load_gpu_backend
from support.engine_runs import merge
from support.fake_gpu import FakeDevice
from support.gpu.runs import on_gpus, same
from support.method_cases import CASES
from support.models import Family, make_family, tuned
from support.pairwise import sample
from support.peak import Measured
from support.tensors import BF16, FP16, FP32

# The interpreter computes with numpy, which warns where the contract has infinities and NaN.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

OTHERS = {name: case for name, case in CASES.items() if case.method != "sce" and not case.on_cpu}


@pytest.fixture(autouse=True)
def launches_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter copies what a kernel is given."""
    launch = GridExecutor.__call__

    def quiet(self: GridExecutor, *arguments: object, **constants: object) -> None:
        with _disable_current_modes():
            launch(self, *arguments, **constants)

    monkeypatch.setattr(GridExecutor, "__call__", quiet)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    g = torch.Generator().manual_seed(3)
    shapes = {"w": (7, 650), "norm": (33,), "scalar": (), "empty": (0, 3)}
    base = {n: torch.randn(s, generator=g).mul(0.05).to(BF16) for n, s in shapes.items()}
    home = tmp_path_factory.mktemp("small")
    return make_family(home, [base, tuned(base, 1), tuned(base, 2, FP32), tuned(base, 3, FP16)])


@pytest.mark.parametrize("name", sample(OTHERS, 9))
def test_every_method(name: str, family: Family) -> None:
    case = OTHERS[name]
    case.configure(family)
    merge(family, "cpu", overwrite=True)
    device = FakeDevice()
    kernels = Measured(load_gpu_backend("triton"), device, slack=2048)
    result = on_gpus(family, device, kernels=kernels, threads=2)
    assert same(family)
    assert result.notes == () and kernels.ops >= result.tensors
