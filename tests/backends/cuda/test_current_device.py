"""Inputs on one GPU while another is the current one: kernels go to the inputs' device and its stream.

torch's idea of devices is made up here, and their memory is the host's: that of two GPUs is in backends/test_gpu.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from fuseo1_kernels.backends.arrays import Array
from fuseo1_kernels.backends.contract import FuseParams, Norms
from fuseo1_kernels.backends.cuda.backend import CudaBackend
from support.cuda_calls import OPS, OUT, TENSORS
from support.emulated import fail_call, load_emulated

pytestmark = pytest.mark.toolchain

THERE = torch.device("cuda", 1)


class Devices:
    """torch.cuda with a current device, 0 at first, and a stream for each that is told from the others."""

    def __init__(self) -> None:
        self.current = 0

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, int(device.index)
        try:
            yield
        finally:
            self.current = before

    def current_stream(self, device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(cuda_stream=self.stream(device))

    @staticmethod
    def stream(device: torch.device) -> int:
        return 1000 + int(device.index)


class OnHost(TorchFunctionMode):
    """Gives memory of the host to whoever asks for a GPU's, and notes which GPU that was."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[torch.device] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        def here(value: Any) -> Any:
            if isinstance(value, torch.device) and value.type == "cuda":
                self.asked.add(value)
                return torch.device("cpu")
            return value

        named = {name: here(value) for name, value in (kwargs or {}).items()}
        return func(*map(here, args), **named)


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Devices:
    devices = Devices()
    monkeypatch.setattr(torch.cuda, "device", devices.device)
    monkeypatch.setattr(torch.cuda, "current_stream", devices.current_stream)
    return devices


def said_to_be_there(array: Array) -> Array:
    return replace(array, owner=SimpleNamespace(device=THERE, memory=array.owner))


class Watched:
    """The native module; notes the current device and the stream at every call that is given one."""

    def __init__(self, kernels: ModuleType, devices: Devices) -> None:
        self._kernels, self._devices = kernels, devices
        self.seen: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._kernels, name)
        if "stream: " not in (getattr(found, "__doc__", None) or ""):
            return found

        def call(*args: Any, **keywords: Any) -> Any:
            self.seen.append((self._devices.current, keywords.get("stream", args[-1])))
            return found(*args, **keywords)

        return call


@pytest.mark.parametrize("name", OPS)
def test_cuda_kernels_go_where_the_inputs_are(name: str, devices: Devices) -> None:
    """So does the memory that they use; and the current device is the caller's again, also after an error."""
    there, out = [said_to_be_there(t) for t in TENSORS], said_to_be_there(OUT)
    kernels = Watched(load_emulated()._kernels, devices)
    gpu = CudaBackend(kernels)  # type: ignore[arg-type]
    with OnHost() as memory:
        OPS[name].call(gpu, there, out)
        assert devices.current == 0
        fail_call(1)
        try:
            with pytest.raises(RuntimeError, match="the stand-in was told to fail"):
                OPS[name].call(gpu, there, out)
        finally:
            fail_call(0)
    assert devices.current == 0
    assert len(kernels.seen) > 1 and {*kernels.seen} == {(1, devices.stream(THERE))}
    assert memory.asked == {THERE}


def test_triton_launches_where_the_inputs_are(
    devices: Devices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It launches on the current device's current stream."""
    backend = pytest.importorskip("fuseo1_kernels.backends.triton.backend")
    seen: list[tuple[str, int]] = []

    def noted(name: str, answer: Any) -> None:
        def call(*args: Any, **keywords: Any) -> Any:
            seen.append((name, devices.current))
            return answer

        monkeypatch.setattr(backend, name, call)

    there, out = [said_to_be_there(t) for t in TENSORS], said_to_be_there(OUT)
    monkeypatch.setattr(backend, "tensor_of", lambda array: array.owner.memory)
    monkeypatch.setattr(backend, "INTERPRETED", False)
    numbers = torch.zeros(backend.RESULT, dtype=torch.int64)
    params = SimpleNamespace(masked=False, floored=False)
    survey = SimpleNamespace(result=numbers, params=torch.zeros(99).double(), targets=3)
    noted("launch_params", params)
    noted("launch_survey", survey)
    noted("launch_fuse", None)
    noted("survey_general", None)
    noted("launch_fuse_general", numbers)
    gpu = backend.TritonBackend()
    with OnHost() as memory:
        gpu.enqueue_survey(there, 0.3, "fuseo1")
        gpu.enqueue_fuse(there, survey, out)
        gpu.survey(there, Norms((None,) * 3), 1)
        gpu.fuse(there, FuseParams((1.0,) * 3, elect="none"), out, 0, 1)
    assert {name for name, _ in seen} == {
        *("launch_params", "launch_survey", "launch_fuse", "survey_general", "launch_fuse_general")
    }
    assert {current for _, current in seen} == {1} and devices.current == 0
    assert memory.asked == {THERE}
