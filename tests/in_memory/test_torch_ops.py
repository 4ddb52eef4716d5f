"""torch.ops.fuseo1: torch's own checks of ops, compiled programs, and the layout of what survey gives fuse."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fuseo1_kernels
from fuseo1_kernels import merge_tensors, torch_ops
from fuseo1_kernels.backends.contract import FuseParams
from fuseo1_kernels.errors import ConfigError, MergeError
from fuseo1_kernels.in_memory import tensor_merge
from fuseo1_kernels.methods.sce import sce_params
from support.emulated import load_emulated
from support.pairwise import sample
from support.tensors import BF16, DTYPES, FP16, FP32, assert_same_bits, siblings

OPS = torch.ops.fuseo1
TOPK, VARIANT = 0.3, "mergekit"
MIXED = (BF16, FP16, FP32)


def transposed(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [t.t().contiguous().t() for t in tensors]


def merged_by_hand(tensors: Sequence[torch.Tensor], **options: Any) -> torch.Tensor:
    parameters = {"select_topk": TOPK, "variant": VARIANT}
    return merge_tensors(tensors, "sce", base_index=0, parameters=parameters, **options)


INPUTS = {
    "bf16": siblings((7, 41), 3, BF16),
    "fp16": siblings((7, 41), 3, FP16),
    "fp32": siblings((7, 41), 1, FP32),
    "mixed": siblings((7, 41), 4, MIXED),
    "0-d": siblings((), 2, BF16),
    "empty": siblings((0, 5), 2, BF16),
    "transposed": transposed(siblings((7, 41), 2, MIXED)),
    "sliced": [t[::2, 3:] for t in siblings((7, 41), 2, BF16)],
}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", sample(INPUTS, 4))
def test_torchs_checks_of_ops(name: str, device: str) -> None:
    base, *targets = (t.to(device) for t in INPUTS[name])
    for topk, variant in ((1.0, "fuseo1"), (TOPK, VARIANT)):
        torch.library.opcheck(OPS.survey, (base, targets, topk, variant))
        torch.library.opcheck(OPS.merge_sce, (base, targets, topk, variant))
    _, params = OPS.survey(base, targets, TOPK, VARIANT)
    for out_dtype in (None, *DTYPES):
        torch.library.opcheck(OPS.fuse, (base, targets, params, out_dtype))
    torch.library.opcheck(OPS.merge_sce, (base, targets), {"out_dtype": FP16})


@pytest.mark.parametrize("name", INPUTS)
def test_the_ops_do_what_the_functions_do(name: str) -> None:
    base, *targets = tensors = INPUTS[name]
    before = [t.clone() for t in tensors]
    assert_same_bits(OPS.merge_sce(base, targets, TOPK, VARIANT), merged_by_hand(tensors))
    _, params = OPS.survey(base, targets, TOPK, VARIANT)
    fused = OPS.fuse(base, targets, params)
    assert_same_bits(fused, merged_by_hand(tensors, out_dtype=base.dtype))
    assert fused.is_contiguous()
    for out_dtype in DTYPES:
        expected = merged_by_hand(tensors, out_dtype=out_dtype)
        assert_same_bits(OPS.fuse(base, targets, params, out_dtype), expected)
        assert_same_bits(OPS.merge_sce(base, targets, TOPK, VARIANT, out_dtype), expected)
    for tensor, copy in zip(tensors, before, strict=True):
        assert_same_bits(tensor, copy)


def test_the_layout_of_survey_and_params() -> None:
    base, *targets = siblings((50, 51), 3, FP32)
    targets[1][3, 4] = float("inf")
    learned, params = OPS.survey(base, targets, TOPK, VARIANT)
    found = fuseo1_kernels.survey(base, targets, select_topk=TOPK)
    expected = [found.nonzero, found.selected, found.threshold, found.tie_limit]
    assert learned.tolist() == [*expected, *found.energy, *found.nonfinite]
    assert found.nonfinite == (0, 0, 1, 0, 0)
    sce = sce_params(found, base.numel(), TOPK, VARIANT)
    mask = 1.0, sce.threshold, sce.tie_limit
    assert params.tolist() == [*sce.weights, sce.floor_divisor, *mask]
    _, unmasked = OPS.survey(base, targets, TOPK)
    assert unmasked[3:].tolist() == [0.0, 0.0, found.threshold, found.tie_limit]


def test_params_of_ones_own() -> None:
    base, *targets = siblings(300, 2, BF16)
    params = torch.tensor([0.25, 0.75, 0, 0, 0, -1], dtype=torch.float64)
    expected = fuseo1_kernels.fuse(base, targets, FuseParams((0.25, 0.75)))
    assert_same_bits(OPS.fuse(base, targets, params), expected)


def test_nonfinite_elements_propagate() -> None:
    base, *targets = siblings(300, 2, FP32)
    targets[0][7] = float("nan")
    merged = OPS.merge_sce(base, targets)
    assert merged.isnan().nonzero().flatten().tolist() == [7]
    assert_same_bits(OPS.fuse(base, targets, OPS.survey(base, targets)[1]), merged)


@pytest.mark.toolchain
@pytest.mark.parametrize("name", INPUTS)
def test_on_an_emulated_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The structs on the device are told apart right: the same tensors come out as on the CPU."""
    base, *targets = tensors = INPUTS[name]
    for topk, variant in ((1.0, "fuseo1"), (TOPK, VARIANT), (0.0, VARIANT)):
        learned, params = OPS.survey(base, targets, topk, variant)
        merged = OPS.merge_sce(base, targets, topk, variant, FP16)
        with monkeypatch.context() as patch:
            for module in (tensor_merge, torch_ops):
                patch.setattr(module, "backend_for", lambda inputs, backend: load_emulated())
            on_device = OPS.survey(base, targets, topk, variant)
            assert torch.equal(on_device[0], learned) and torch.equal(on_device[1], params)
            assert_same_bits(OPS.fuse(base, targets, params, FP16), merged)
            assert_same_bits(OPS.merge_sce(*_split(tensors), topk, variant, FP16), merged)


def _split(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    return tensors[0], list(tensors[1:])


# --- compiled programs ---


def one_op(base: torch.Tensor, targets: list[torch.Tensor]) -> Any:
    merged = OPS.merge_sce(base * 2, [t + base for t in targets], TOPK, VARIANT)
    return merged.relu() + base


def two_ops(base: torch.Tensor, targets: list[torch.Tensor]) -> Any:
    learned, params = OPS.survey(base, targets, TOPK, VARIANT)
    halved = torch.cat([params[:-4] / 2, params[-4:]])
    return OPS.fuse(base, targets, halved, FP32) * learned[1]


@pytest.mark.parametrize("program", [one_op, two_ops])
@pytest.mark.parametrize("name", ["bf16", "mixed", "empty", "sliced"])
def test_a_compiled_program_gives_the_same_bits(program: Any, name: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    base, targets = _split(INPUTS[name])
    assert_same_bits(compiled(base, targets), program(base, targets))


@pytest.mark.parametrize("program", [one_op, two_ops])
def test_one_compiled_program_takes_all_sizes(program: Any) -> None:
    torch.compiler.reset()
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(program, fullgraph=True, dynamic=True, backend=counting)
    for rows in (2, 40, 300):
        base, targets = _split(siblings((rows, 33), 3, BF16, seed=rows))
        assert_same_bits(compiled(base, targets), program(base, targets))
    assert len(graphs) == 1
    assert any(str(node.target).startswith("fuseo1") for node in graphs[0].graph.nodes)


def test_fake_tensors_are_like_the_real_ones() -> None:
    """On devices that are not here; the programs that hold them compile before there is a GPU."""
    with FakeTensorMode():
        base = torch.empty(6, 7, dtype=FP16, device="cuda")
        targets = [torch.empty(6, 7, dtype=BF16, device="cuda")] * 3
        learned, params = OPS.survey(base, targets)
        fused, merged = OPS.fuse(base, targets, params), OPS.merge_sce(base, targets)
    found = [(tuple(t.shape), t.dtype, t.device.type) for t in (learned, params, fused, merged)]
    assert found == [
        ((12,), torch.float64, "cuda"),
        ((7,), torch.float64, "cuda"),
        ((6, 7), FP16, "cuda"),
        ((6, 7), FP32, "cuda"),
    ]


def test_there_are_no_gradients() -> None:
    base, *targets = siblings(300, 2, FP32)
    merged = OPS.merge_sce(base.requires_grad_(), targets)
    with pytest.raises(RuntimeError, match=r"backward through fuseo1.merge_sce.* no autograd"):
        merged.sum().backward()


# --- misuse ---


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_misuse_is_explained(device: str) -> None:
    """By the ops and by their fake kernels."""
    base, *targets = (t.to(device) for t in siblings((4, 5), 2, BF16))
    params = torch.zeros(6, dtype=torch.float64, device=device)
    for op, more in ((OPS.survey, ()), (OPS.merge_sce, ()), (OPS.fuse, (params,))):
        with pytest.raises(MergeError, match=r"target 2 has shape \(5, 4\), the base \(4, 5\)"):
            op(base, [targets[0], targets[1].t()], *more)
        with pytest.raises(MergeError, match=r"target 1 is torch\.float64; supported: bfloat16"):
            op(base, [t.double() for t in targets], *more)
        with pytest.raises(MergeError, match="a merge needs a base and at least one target"):
            op(base, [], *more)
    for op in (OPS.survey, OPS.merge_sce):
        with pytest.raises(ConfigError, match=r"select_topk: must be a number in \[0, 1\]"):
            op(base, targets, 1.5)
        with pytest.raises(ConfigError, match="variant: must be one of fuseo1, mergekit"):
            op(base, targets, 0.5, "other")
    with pytest.raises(MergeError, match=r"the output dtype is torch\.int32"):
        OPS.fuse(base, targets, params, torch.int32)
    with pytest.raises(MergeError, match=r"the output dtype is torch\.int32"):
        OPS.merge_sce(base, targets, out_dtype=torch.int32)
    for wrong in (params.float(), params[:5], params.view(2, 3)):
        with pytest.raises(MergeError, match=r"params is .*; 2 targets take float64 \(6,\)"):
            OPS.fuse(base, targets, wrong)


def test_params_on_another_device() -> None:
    base, *targets = siblings((4, 5), 2, BF16)
    with pytest.raises(MergeError, match="params is on meta, the base on cpu"):
        OPS.fuse(base, targets, torch.zeros(6, dtype=torch.float64, device="meta"))


@pytest.mark.parametrize("value", [0.5, -1.0, float("nan"), 2.0**32])
def test_params_whose_threshold_is_none(value: float) -> None:
    base, *targets = siblings((4, 5), 2, BF16)
    params = torch.tensor([1, 1, 0, 1, value, 3], dtype=torch.float64)
    with pytest.raises(MergeError, match="params: threshold"):
        OPS.fuse(base, targets, params)


def test_the_package_registers_nothing_by_itself() -> None:
    """Importing the package imports no torch (in_memory/test_merge_tensors.py); the functions register no ops."""
    code = (
        "import torch\nfrom fuseo1_kernels import merge_tensors\n"
        "print(hasattr(torch.ops.fuseo1, 'survey'))\n"
        "import fuseo1_kernels.torch_ops\nprint(hasattr(torch.ops.fuseo1, 'survey'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
