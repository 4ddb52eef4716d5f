"""Merges captured into a CUDA graph: replayed on new data, they give the CPU's bits."""

from __future__ import annotations

import pytest
import torch
from tensors import BF16, FP32, assert_same_bits, siblings

import fuseo1_kernels.torch_ops
from fuseo1_kernels import merge_tensors
from fuseo1_kernels.errors import BackendError

_ROUNDS = 3


@pytest.fixture(scope="module", autouse=True)
def _gpu() -> None:
    from fuseo1_kernels.backends import load_gpu_backend

    try:
        load_gpu_backend("auto")
    except BackendError as error:
        pytest.skip(str(error))


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
