"""The Triton backend: its tests in the interpreter, run in a process of their own, and what it says without a GPU."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
import torch

from fuseo1_kernels import survey
from fuseo1_kernels.backends import registry
from fuseo1_kernels.errors import BackendError
from support.paths import ROOT

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


def interpreted(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("part", "marked"),
    [
        ("merges", "not slow"),
        pytest.param("merges", "slow", marks=pytest.mark.slow),
        pytest.param("kernels", "not slow", marks=pytest.mark.slow),
    ],
)
def test_in_the_interpreter(part: str, marked: str) -> None:
    """Every method, in `merges`; every kernel on data that are hard for it, in `kernels`."""
    file = f"tests/backends/triton/interpreted_{part}.py"
    ran = interpreted("-m", "pytest", "-q", "-m", marked, "-p", "no:cacheprovider", file)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    print(ran.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_interpreter_is_told_of() -> None:
    ran = interpreted("-m", "fuseo1_kernels")
    assert "triton     interpreter, Triton " in ran.stdout, ran.stdout + ran.stderr


def test_tensors_on_the_cpu_are_refused() -> None:
    with pytest.raises(BackendError, match="merges tensors that are in a GPU's memory"):
        survey(torch.zeros(4), [torch.zeros(4)], backend="triton")


@without_gpu
def test_no_gpu() -> None:
    with pytest.raises(BackendError, match="backend triton cannot run here: torch finds no GPU"):
        registry.load_gpu_backend("triton")


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    registry.load_gpu_backend.cache_clear()
    with pytest.raises(BackendError, match=r"`pip install fuseo1-kernels\[triton\]`"):
        registry.load_gpu_backend("triton")
    registry.load_gpu_backend.cache_clear()


def test_auto_prefers_cuda_and_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU `auto` takes cuda if it can run, else triton, saying why."""

    class Stub:
        def __init__(self, name: str) -> None:
            self.name = name

    def load(name: str) -> Stub:
        if name in broken:
            raise BackendError(f"backend {name} cannot run here: it is broken")
        return Stub(name)

    broken: set[str] = set()
    monkeypatch.setattr(registry, "_load", load)
    registry.load_gpu_backend.cache_clear()
    assert registry.load_gpu_backend("auto").name == "cuda"
    broken.add("cuda")
    registry.load_gpu_backend.cache_clear()
    with pytest.warns(UserWarning, match="cuda cannot run here: it is broken; triton is used"):
        assert registry.load_gpu_backend("auto").name == "triton"
    broken.add("triton")
    registry.load_gpu_backend.cache_clear()
    with pytest.raises(BackendError, match=r"cuda cannot run.*; backend triton cannot run"):
        registry.load_gpu_backend("auto")
    registry.load_gpu_backend.cache_clear()


def test_the_package_does_not_shadow_triton() -> None:
    package = importlib.import_module("fuseo1_kernels.backends.triton")
    assert package.__name__ == "fuseo1_kernels.backends.triton"
    assert hasattr(importlib.import_module("triton"), "jit")
