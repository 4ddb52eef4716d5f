"""The CUDA part on a host without an NVIDIA driver, such as the one that builds it: it is imported, and says so."""

from __future__ import annotations

import ctypes
import importlib.util

import pytest

from support.models import Family
from support.processes import run, spawn

MISSING = "there is no NVIDIA driver here"
SAID = f"backend cuda cannot run here: {MISSING}"


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("fuseo1_kernels.backends._cuda") is None,
        reason="the CUDA part is not built here",
    ),
    pytest.mark.skipif(_has_driver(), reason="this machine has an NVIDIA driver"),
]


def test_the_module_is_imported_and_says_what_is_missing() -> None:
    """It links no driver, and torch, which might bring one, is not there yet."""
    ran = spawn(
        "-c",
        "import sys\nfrom fuseo1_kernels.backends import _cuda\nassert 'torch' not in sys.modules\n"
        "print(_cuda.problem())\nprint(_cuda.ARCHITECTURES)",
    )
    assert ran.code == 0, ran.err
    problem, architectures = ran.out.splitlines()
    assert problem == MISSING and architectures


def test_what_needs_no_device_works() -> None:
    """Whoever plans memory asks for sizes wherever the plan is made."""
    from fuseo1_kernels.backends import _cuda

    assert _cuda.workspace_bytes(3, 1 << 20, 0.5) > 1 << 18
    assert _cuda.magnitudes_bytes(1 << 20) > 0


def test_the_backend_is_absent_for_that_reason() -> None:
    from fuseo1_kernels.backends.registry import load_gpu_backend
    from fuseo1_kernels.errors import BackendError

    with pytest.raises(BackendError) as refused:
        load_gpu_backend("cuda")
    assert str(refused.value) == SAID
    with pytest.raises(BackendError) as neither:
        load_gpu_backend("auto")
    assert SAID in str(neither.value) and "backend triton cannot run here: " in str(neither.value)


@pytest.mark.slow
def test_versions_say_so() -> None:
    ran = spawn("-m", "fuseo1_kernels")
    assert ran.code == 0, ran.err
    lines = {line.split()[0]: line for line in ran.out.splitlines() if line.startswith("  ")}
    assert lines["cuda"].split(maxsplit=1)[1] == f"absent: {SAID}"


@pytest.mark.parametrize(
    "options", [("--backend", "cuda"), ("--cuda",), ("--device", "cuda"), ("--device", "cuda:1")]
)
@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)], ids=["merge", "dry run"])
def test_a_merge_that_asks_for_it_says_so(
    options: tuple[str, ...], dry_run: tuple[str, ...], family: Family
) -> None:
    ran = run(family.config, family.out, *options, *dry_run)
    assert ran.code == 1
    said = ran.out + ran.err if dry_run else ran.err
    assert SAID in said
    assert "Traceback" not in ran.err
    assert not family.out.exists()
