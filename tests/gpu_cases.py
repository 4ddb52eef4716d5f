"""What the backends for GPUs are tested with: data that is hard on them, and comparison with the cpu backend's bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensors import BF16, FP16, FP32

from fuseo1_kernels.arrays import BY_NAME, Array
from fuseo1_kernels.backends import GpuBackend, SurveyResult, load_backend
from fuseo1_kernels.weights import sce_params

DTYPES = (BF16, FP16, FP32)
TOPKS = (1.0, 0.9, 0.5, 0.1, 0.001, 0.0)
_INTEGERS = {2: torch.int16, 4: torch.int32}


def array(tensor: torch.Tensor) -> Array:
    name = str(tensor.dtype).removeprefix("torch.")
    return Array(tensor.data_ptr(), BY_NAME[name], tensor.numel(), tensor)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(_INTEGERS[tensor.element_size()])


def on_cpu(
    tensors: Sequence[torch.Tensor], select_topk: float, variant: str, dtype: torch.dtype
) -> tuple[SurveyResult, int, torch.Tensor]:
    """(survey, how many outputs are not finite, output)"""
    cpu, inputs = load_backend("cpu"), [array(t) for t in tensors]
    survey = cpu.survey(inputs, select_topk, 2)
    params = sce_params(survey, inputs[0].numel, select_topk, variant)
    out = torch.empty(inputs[0].numel, dtype=dtype)
    return survey, cpu.fuse(inputs, params, array(out), 0, 2), out


def on_gpu(
    backend: GpuBackend,
    tensors: Sequence[torch.Tensor],
    select_topk: float,
    variant: str,
    out: torch.Tensor,
) -> tuple[SurveyResult, int]:
    inputs = [array(t) for t in tensors]
    survey = backend.enqueue_survey(inputs, select_topk, variant)
    backend.enqueue_fuse(inputs, survey, array(out))
    return backend.result(survey)


def compare(
    backend: GpuBackend,
    tensors: Sequence[torch.Tensor],
    select_topk: float,
    variant: str,
    out: torch.Tensor,
) -> int:
    """Assert that all is equal to the CPU's; returns how often the GPU read the tensor for the survey."""
    expected, bad, merged = on_cpu(tensors, select_topk, variant, out.dtype)
    found, written = on_gpu(backend, tensors, select_topk, variant, out)
    differing = {
        name: (value, getattr(found, name))
        for name, value in vars(expected).items()
        if name != "passes" and getattr(found, name) != value
    }
    assert not differing
    assert written == bad
    assert torch.equal(bits(out), bits(merged))
    return found.passes


# --- data: functions of a size, a number of targets and a generator ---------------------------


def tuned(n: int, targets: int, g: torch.Generator, rms: float = 1e-3) -> list[torch.Tensor]:
    base = torch.randn(n, generator=g) * 0.02
    return [base, *(base + torch.randn(n, generator=g) * rms * (i + 1) for i in range(targets))]


def lightly_tuned(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    return tuned(n, targets, g, 1e-4)


def tied(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    return [
        torch.zeros(n),
        *(torch.round(torch.randn(n, generator=g) * 2) / 4 for _ in range(targets)),
    ]


def two_values(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    drawn = [(torch.rand(n, generator=g) < 0.5).float() * (i + 1) for i in range(targets)]
    return [torch.zeros(n), *drawn]


def constant(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    return [torch.zeros(n), *(torch.full((n,), i + 1.0) for i in range(targets))]


def alike(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    return [torch.randn(n, generator=g)] * (targets + 1)


def denormal(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    return [torch.randn(n, generator=g) * 1e-41 for _ in range(targets + 1)]


def tiny_scores(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    """Variances around the smallest fp32, where dividing by a reciprocal would be wrong."""
    return [
        torch.zeros(n),
        *(torch.randn(n, generator=g) * 10.0 ** (-18 - i % 6) for i in range(targets)),
    ]


def outlier(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    tensors = tuned(n, targets, g)
    tensors[1][n // 2] = 6e4
    return tensors


def ascending(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    base = torch.zeros(n)
    steps = torch.sort(torch.randn(n, generator=g)).values * 1e-3
    return [base, *(steps * (i + 1) for i in range(targets))]


def nonfinite(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    tensors = tuned(n, targets, g)
    tensors[-1][:: max(1, n // 7)] = float("nan")
    tensors[1][n // 2] = float("inf")
    tensors[0][n // 3] = float("-inf")
    return tensors


def overflowing(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    drawn = [torch.randn(n, generator=g) * 2e38 for _ in range(targets)]
    return [torch.full((n,), -2e38), *drawn]


def huge(n: int, targets: int, g: torch.Generator) -> list[torch.Tensor]:
    """Squares overflow fp32."""
    return [torch.zeros(n), *(torch.randn(n, generator=g) * 1e25 for _ in range(targets))]


KINDS: list[Callable[[int, int, torch.Generator], list[torch.Tensor]]] = [
    tuned,
    lightly_tuned,
    tied,
    two_values,
    constant,
    alike,
    denormal,
    tiny_scores,
    outlier,
    ascending,
    nonfinite,
    overflowing,
    huge,
]


def misaligned(tensor: torch.Tensor, by: int) -> torch.Tensor:
    """A copy that begins `by` elements beyond an aligned address."""
    copy = torch.empty(tensor.numel() + 32, dtype=tensor.dtype)[by : by + tensor.numel()]
    return copy.copy_(tensor)
