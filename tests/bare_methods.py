"""The merges of the GPU's tests, on the CPU: what they import while they run (test_bare_machine.py)."""

from __future__ import annotations

import pytest
import torch
from gpu_family import Methods

from fuseo1_kernels.backends.cpu import CpuBackend
from fuseo1_kernels.backends.registry import load_backend


class TestOnCpu(Methods):
    @pytest.fixture
    def gpu(self) -> CpuBackend:
        backend = load_backend("cpu")
        assert isinstance(backend, CpuBackend)
        return backend

    @pytest.fixture
    def device(self) -> torch.device:
        return torch.device("cpu")
