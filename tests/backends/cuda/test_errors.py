"""Every call of CUDA's runtime, and every launch, that fails becomes an exception; the stand-in fails one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from fuseo1_kernels.backends.cuda.backend import CudaBackend
from support.cuda_calls import OPS, OUT, TENSORS
from support.emulated import calls, fail_call, load_emulated

pytestmark = pytest.mark.toolchain


@pytest.fixture
def gpu() -> Iterator[CudaBackend]:
    yield load_emulated()
    fail_call(0)


@pytest.mark.parametrize("name", OPS)
def test_every_failing_call_is_an_exception(name: str, gpu: CudaBackend) -> None:
    """It names kernel and shape, and nothing is called after it."""
    op = OPS[name]
    fail_call(0)
    op.call(gpu, TENSORS, OUT)
    total, named = calls(), set[str]()
    for number in range(1, total + 1):
        fail_call(number)
        with pytest.raises(RuntimeError) as failed:
            op.call(gpu, TENSORS, OUT)
        assert calls() == number, f"{failed.value}: not the last call"
        told = re.fullmatch(
            rf"(\w+) on {op.shape}: the stand-in was told to fail \(cudaErrorLaunchFailure\)",
            str(failed.value),
        )
        assert told, str(failed.value)
        named.add(told[1])
    assert op.kernels <= named
    fail_call(0)
    op.call(gpu, TENSORS, OUT)
    assert calls() == total, "what failed has left nothing behind"


def test_why_no_kernel_can_run(gpu: CudaBackend) -> None:
    kernels = gpu._kernels
    fail_call(0)
    assert kernels.problem() == ""
    for number in range(1, calls() + 1):
        fail_call(number)
        assert kernels.problem() == "the stand-in was told to fail"
