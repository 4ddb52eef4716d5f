"""The merges of the GPU's tests, on the CPU: what they import while they run (build/test_bare_machine.py)."""

from __future__ import annotations

import pytest
import torch

from fuseo1_kernels.backends.cpu import CpuBackend
from fuseo1_kernels.backends.registry import load_backend
from support.gpu.general import Methods


class TestOnCpu(Methods):
    @pytest.fixture
    def gpu(self) -> CpuBackend:
        backend = load_backend("cpu")
        assert isinstance(backend, CpuBackend)
        return backend

    @pytest.fixture
    def device(self) -> torch.device:
        return torch.device("cpu")
