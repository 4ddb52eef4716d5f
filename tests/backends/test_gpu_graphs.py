"""Merges on a GPU that the host does not wait for: in graphs replayed on new data, they give the CPU's bits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

import fuseo1_kernels.torch_ops  # noqa: F401
from fuseo1_kernels import ResidentSurveys, merge_tensors
from support.tensors import BF16, FP16, FP32, assert_same_bits, siblings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
    pytest.mark.skipif(
        importlib.util.find_spec("fuseo1_kernels.backends._cuda") is None,
        reason="built without the CUDA kernels",
    ),
]

Merge = Callable[[Sequence[torch.Tensor], float, str], torch.Tensor]


def in_memory(tensors: Sequence[torch.Tensor], topk: float, variant: str) -> torch.Tensor:
    parameters = {"select_topk": topk, "variant": variant}
    return merge_tensors(tensors, "sce", base_index=0, parameters=parameters, nonfinite="propagate")


def one_op(tensors: Sequence[torch.Tensor], topk: float, variant: str) -> torch.Tensor:
    merged: torch.Tensor = torch.ops.fuseo1.merge_sce(tensors[0], tensors[1:], topk, variant)
    return merged


def two_ops(tensors: Sequence[torch.Tensor], topk: float, variant: str) -> torch.Tensor:
    base, *targets = tensors
    _, params = torch.ops.fuseo1.survey(base, targets, topk, variant)
    merged: torch.Tensor = torch.ops.fuseo1.fuse(base, targets, params)
    return merged


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_gpu(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [t.cuda() for t in tensors]


@pytest.mark.parametrize("variant", ["fuseo1", "mergekit"])
@pytest.mark.parametrize("topk", [1.0, 0.5])
@pytest.mark.parametrize("merge", [in_memory, one_op, two_ops])
def test_a_graph_merges_new_data(merge: Merge, topk: float, variant: str) -> None:
    shape = (500, 301)
    held = on_gpu(siblings(shape, 3, BF16))
    merge(held, topk, variant)  # loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        merged = merge(held, topk, variant)
    for seed in (1, 2, 3):
        new = siblings(shape, 3, BF16, seed=seed, rms=10.0**-seed)
        if seed == 3:
            new[1][7, 5] = float("nan")
        for place, tensor in zip(held, new, strict=True):
            place.copy_(tensor)
        graph.replay()
        assert_same_bits(merged.cpu(), in_memory(new, topk, variant), seed)


@pytest.mark.parametrize("topk", [1.0, 0.5])
@pytest.mark.parametrize("merge", [in_memory, one_op, two_ops])
def test_nothing_waits(merge: Merge, topk: float) -> None:
    tensors = siblings((300, 301), 2, (BF16, FP16, FP32))
    held = on_gpu([t.t() for t in tensors])
    with no_waiting():
        merged = merge(held, topk, "mergekit")
    expected = merge([t.t() for t in tensors], topk, "mergekit")
    assert_same_bits(merged.cpu(), expected)


def test_a_known_survey_is_not_waited_for() -> None:
    tensors, surveys = siblings((300, 301), 2), ResidentSurveys()
    held, options = on_gpu(tensors), {"parameters": {"select_topk": 0.3, "variant": "mergekit"}}
    first = merge_tensors(held, "sce", base_index=0, surveys=surveys, **options)  # type: ignore[arg-type]
    options["nonfinite"] = "propagate"  # type: ignore[assignment]
    with no_waiting():
        again = merge_tensors(held, "sce", base_index=0, surveys=surveys, **options)  # type: ignore[arg-type]
    expected = in_memory(tensors, 0.3, "mergekit")
    assert_same_bits(first.cpu(), expected)
    assert_same_bits(again.cpu(), expected)
