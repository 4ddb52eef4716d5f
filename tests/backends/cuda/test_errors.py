"""Every call of CUDA's runtime, and every launch, that fails becomes an exception; the stand-in fails one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from fuseo1_kernels.backends.cuda.backend import CudaBackend
from support.cuda_calls import OPS, OUT, TENSORS
from support.emulated import calls, contexts, fail_call, load_emulated, set_capability

pytestmark = pytest.mark.toolchain


@pytest.fixture
def gpu() -> Iterator[CudaBackend]:
    yield load_emulated()
    fail_call(0)


@pytest.fixture
def any_capability(gpu: CudaBackend) -> Iterator[None]:
    yield
    set_capability(90)


@pytest.mark.parametrize("name", OPS)
def test_every_failing_call_is_an_exception(name: str, gpu: CudaBackend) -> None:
    """It names kernel and shape, and nothing is called after it."""
    op = OPS[name]
    op.call(gpu, TENSORS, OUT)  # what is asked once is known from here on
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


@pytest.mark.parametrize("capability", [80, 86, 90])
def test_what_has_machine_code_is_known_without_a_context(
    capability: int, gpu: CudaBackend, any_capability: None
) -> None:
    """One would take memory on the first GPU, which --device may not name."""
    set_capability(capability)
    before = contexts()
    assert gpu._kernels.problem() == "" and contexts() == before


@pytest.mark.parametrize("capability", [75, 100])
def test_why_no_kernel_can_run(capability: int, gpu: CudaBackend, any_capability: None) -> None:
    """Without machine code the runtime is asked whether the driver can make some."""
    kernels = gpu._kernels
    set_capability(capability)
    fail_call(0)
    before = contexts()
    assert kernels.problem() == "" and contexts() == before + 1
    asked = calls()
    told = []
    for number in range(1, asked + 1):
        fail_call(number)
        told.append(kernels.problem())
    # The first calls only look for machine code, and need not succeed.
    assert told[3:] == ["the stand-in was told to fail"] * 3 and told[:3] == [""] * 3
