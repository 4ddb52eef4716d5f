"""The CUDA kernels' sources, run thread after thread on the host: the bits are the CPU's, whatever the data."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from emulated import load_emulated
from tensors import BF16, FP16, FP32

from fuseo1_kernels import memory, merge_tensors, ops
from fuseo1_kernels.arrays import BY_NAME, Array
from fuseo1_kernels.backends import SurveyResult, load_backend, load_gpu_backend
from fuseo1_kernels.backends.cuda import CudaBackend
from fuseo1_kernels.errors import BackendError, MergeError
from fuseo1_kernels.weights import sce_params

DTYPES = (BF16, FP16, FP32)
TOPKS = (1.0, 0.9, 0.5, 0.1, 0.001, 0.0)
_INTEGERS = {2: torch.int16, 4: torch.int32}


@pytest.fixture(scope="module")
def cuda() -> CudaBackend:
    return load_emulated()


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
    cuda: CudaBackend,
    tensors: Sequence[torch.Tensor],
    select_topk: float,
    variant: str,
    out: torch.Tensor,
) -> tuple[SurveyResult, int]:
    inputs = [array(t) for t in tensors]
    survey = cuda.enqueue_survey(inputs, select_topk, variant)
    cuda.enqueue_fuse(inputs, survey, array(out))
    return cuda.result(survey)


def compare(
    cuda: CudaBackend,
    tensors: Sequence[torch.Tensor],
    select_topk: float,
    variant: str,
    out: torch.Tensor,
) -> int:
    """Assert that all is equal to the CPU's; returns how often the GPU read the tensor for the survey."""
    expected, bad, merged = on_cpu(tensors, select_topk, variant, out.dtype)
    found, written = on_gpu(cuda, tensors, select_topk, variant, out)
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


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_bits_are_the_cpus(kind: Callable[..., list[torch.Tensor]], cuda: CudaBackend) -> None:
    """Drawn from all sizes, numbers of targets, dtypes, alignments and options."""
    draw, g = random.Random(kind.__name__), torch.Generator().manual_seed(7)
    for _ in range(40):
        targets = draw.choice([1, 2, 3, 3, 4, 5, 7, 8, 9, 15, 16])
        n = draw.choice([1, 7, 8, 255, 257, 4096, 4097, 65537, 131_072 + draw.randrange(1000)])
        if targets > 8:
            n = min(n, 5000)
        one = draw.choice(DTYPES)
        dtypes = [one if draw.random() < 0.6 else draw.choice(DTYPES) for _ in range(targets + 1)]
        tensors = [
            misaligned(t.to(dtype), draw.choice([0, 0, 1, 3, 8]))
            for t, dtype in zip(kind(n, targets, g), dtypes, strict=True)
        ]
        out = misaligned(torch.full((n,), 7.0).to(draw.choice(DTYPES)), draw.choice([0, 0, 1]))
        compare(cuda, tensors, draw.choice(TOPKS), draw.choice(["fuseo1", "mergekit"]), out)


@pytest.mark.parametrize("select_topk", [0.5, 0.1])
def test_one_read_is_the_rule(select_topk: float, cuda: CudaBackend) -> None:
    tensors = [t.to(BF16) for t in tuned(300_000, 3, torch.Generator().manual_seed(1))]
    out = torch.empty(300_000, dtype=BF16)
    assert compare(cuda, tensors, select_topk, "mergekit", out) == 1


def test_the_exact_path(cuda: CudaBackend) -> None:
    """More ties than candidates can be kept; then the threshold and the cut come from histograms."""
    tensors = two_values(500_000, 3, torch.Generator().manual_seed(1))
    out = torch.empty(500_000)
    passes = [compare(cuda, tensors, topk, "mergekit", out) for topk in (0.1, 0.5, 0.9)]
    assert max(passes) > 1


@pytest.mark.parametrize("offset", [0, 256, 65_536])
def test_fuse_of_a_part(offset: int, cuda: CudaBackend) -> None:
    """As `fuse` is called with given parameters, and with an offset."""
    tensors = [t.to(BF16) for t in tied(70_000, 3, torch.Generator().manual_seed(2))]
    cpu, inputs = load_backend("cpu"), [array(t) for t in tensors]
    params = sce_params(cpu.survey(inputs, 0.3, 2), 70_000, 0.3, "mergekit")
    part = [x.part(offset, 70_000 - offset) for x in inputs]
    expected, found = (torch.empty(70_000 - offset, dtype=BF16) for _ in range(2))
    assert cpu.fuse(part, params, array(expected), offset, 2) == 0
    assert cuda.fuse(part, params, array(found), offset, 1) == 0
    assert torch.equal(bits(found), bits(expected))


def test_small_tensors_in_one_launch(cuda: CudaBackend) -> None:
    draw, g = random.Random(3), torch.Generator().manual_seed(3)
    for _ in range(25):
        targets, select_topk = draw.choice([1, 2, 3, 5, 8, 9, 16]), draw.choice(TOPKS)
        variant = draw.choice(["fuseo1", "mergekit"])
        sets, outs = [], []
        for _ in range(draw.randrange(1, 6)):
            n = draw.choice([1, 255, 257, 5120, 20_000])
            made = draw.choice(KINDS)(n, targets, g)
            sets.append([misaligned(t.to(draw.choice(DTYPES)), draw.choice([0, 3])) for t in made])
            outs.append(torch.full((n,), 3.0).to(draw.choice(DTYPES)))
        inputs = [[array(t) for t in tensors] for tensors in sets]
        pending = cuda.enqueue_small(inputs, [array(o) for o in outs], select_topk, variant)
        for tensors, out, (found, written) in zip(sets, outs, cuda.results(pending), strict=True):
            expected, bad, merged = on_cpu(tensors, select_topk, variant, out.dtype)
            assert vars(found) | {"passes": 1} == vars(expected) | {"passes": 1}
            assert written == bad
            assert torch.equal(bits(out), bits(merged))


def test_too_many_targets(cuda: CudaBackend) -> None:
    inputs = [array(torch.zeros(4))] * 18
    with pytest.raises(BackendError, match="1 to 16 targets are supported on a GPU, not 17"):
        cuda.enqueue_survey(inputs, 1.0, "fuseo1")


def test_the_workspace_is_small(cuda: CudaBackend) -> None:
    """3 % of the inputs and 2.5 MiB."""
    for targets in (1, 3, 7, 16):
        for numel in (1, 1 << 20, 5120 * 27648, 1 << 33):
            for topk in (1.0, 0.1):
                held = cuda._kernels.workspace_bytes(targets, numel, topk)
                assert held <= 0.03 * 2 * (targets + 1) * numel + (5 << 19)


def test_through_the_public_functions(cuda: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """As tensors on a GPU take them; here the GPU is the host."""
    tensors = [t.to(BF16).view(100, 257) for t in tied(25_700, 3, torch.Generator().manual_seed(4))]
    keywords = {"base_index": 0, "parameters": {"select_topk": 0.3, "variant": "mergekit"}}
    expected = merge_tensors(tensors, "sce", **keywords)
    for module in (ops, memory):
        monkeypatch.setattr(module, "engine_for", lambda inputs, backend: cuda)
    assert torch.equal(merge_tensors(tensors, "sce", **keywords), expected)
    out = torch.empty(257, 100, dtype=BF16).T
    assert merge_tensors(tensors, "sce", out=out, **keywords) is out
    assert torch.equal(out, expected)
    survey = ops.survey(tensors[0], tensors[1:], select_topk=0.3)
    params = sce_params(survey, 25_700, 0.3, "mergekit")
    assert torch.equal(ops.fuse(tensors[0], tensors[1:], params), expected)
    tensors[1][3, 4] = float("nan")
    with pytest.raises(MergeError, match="tensor 1 has 1"):
        merge_tensors(tensors, "sce", **keywords)


@pytest.mark.parametrize(
    ("load", "name", "words"),
    [
        (load_backend, "cuda", "merges tensors that are in a GPU's memory"),
        (load_gpu_backend, "cpu", "works in the CPU's memory"),
        (load_gpu_backend, "vulkan", "there is no backend 'vulkan' for GPUs .* auto, cuda"),
    ],
)
def test_backends_of_the_other_memory(load: Callable[[str], object], name: str, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        load(name)
