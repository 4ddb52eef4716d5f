"""Tensors that are none, that are not dense, or whose elements are not what lies in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fuseo1_kernels import ResidentSurveys, fuse, merge_state_dicts, merge_tensors, survey
from fuseo1_kernels.backends.contract import FuseParams
from fuseo1_kernels.errors import TensorTypeError
from support.tensors import FP32, assert_same_bits, siblings

SHAPE = (6, 5)


class Wrapper(torch.Tensor):
    """A tensor that keeps others, and no memory itself, as quantized and distributed ones do."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Wrapper:
        made: Wrapper = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)
        return made

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        return cls(torch.zeros(SHAPE))


#: What is given in a tensor's place, and what the error calls it.
KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "None": (lambda: None, "of type NoneType"),
    "a number": (lambda: 3.0, "of type float"),
    "a text": (lambda: "w", "of type str"),
    "a list": (lambda: [[1.0] * 5] * 6, "of type list; give a torch.Tensor"),
    "a NumPy array": (
        lambda: np.zeros(SHAPE, np.float32),
        "of type ndarray; pass torch.from_numpy",
    ),
    "COO": (lambda: torch.zeros(SHAPE).to_sparse(), "sparse_coo, not dense; pass it.to_dense()"),
    "CSR": (lambda: torch.zeros(SHAPE).to_sparse_csr(), "sparse_csr, not dense"),
    "nested": (lambda: torch.nested.nested_tensor([torch.zeros(5)] * 6), "nested"),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.zeros(5)] * 6, layout=torch.jagged),
        "nested",
    ),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.zeros(SHAPE), 1.0, 0, torch.qint8),
        "quantized (qint8); pass it.dequantize()",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_dense_tensor(kind: str) -> None:
    """One TypeError, which names the argument, wherever it stands."""
    make, word = KINDS[kind]
    good, bad = siblings(SHAPE, 2), make()
    equal, ones = FuseParams((1.0, 1.0)), {"weight": 1.0}
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: survey(bad, good[1:]), "the base"),
        (lambda: survey(good[0], [good[1], bad]), "target 2"),
        (lambda: fuse(bad, good[1:], equal), "the base"),
        (lambda: merge_tensors([*good, bad], "sce", base_index=0), "tensor 3"),
        (lambda: merge_tensors([bad, *good], "linear", ids="abcd", parameters=ones), "model 'a'"),
        (lambda: merge_state_dicts([{"w": good[0]}, {"w": bad}], "sce", base=0), "model 1: w"),
    ]
    if bad is not None:
        calls += [
            (lambda: fuse(good[0], good[1:], equal, out=bad), "out"),
            (lambda: merge_tensors(good, "sce", base_index=0, out=bad), "out"),
        ]
    for call, name in calls:
        with pytest.raises(TensorTypeError) as caught:
            call()
        assert str(caught.value).startswith(f"{name} is {word}")
        assert isinstance(caught.value, TypeError)


def test_tensors_without_memory() -> None:
    good = siblings(SHAPE, 2, FP32)
    wrapper = Wrapper(good[1])
    with pytest.raises(TensorTypeError, match="tensor 3 is of type Wrapper, which has no memory"):
        merge_tensors([*good, wrapper], "sce", base_index=0)
    with pytest.raises(TensorTypeError, match=r"target 1 is .*, which has no memory"):
        torch.func.vmap(lambda t: fuse(torch.zeros(5), [t], FuseParams((1.0,))))(good[1])


@pytest.mark.parametrize("tensors", [None, 3, torch.tensor(1.0)])
def test_what_is_no_sequence(tensors: Any) -> None:
    base = torch.zeros(3)
    for call, name in (
        (lambda: survey(base, tensors), "targets"),
        (lambda: fuse(base, tensors, FuseParams(())), "targets"),
        (lambda: merge_tensors(tensors, "sce"), "tensors"),
        (lambda: merge_state_dicts(tensors, "sce"), "models"),
    ):
        with pytest.raises(TensorTypeError, match=f"{name} must be a sequence"):
            call()


def negated(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, as a view that has their negatives in memory."""
    view = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert view.is_neg() and torch.equal(view, tensor)
    return view


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("sce", {"select_topk": 0.5}),
        ("ties", {"density": 0.5, "weight": 1.0}),
        ("nuslerp", {"weight": 1.0, "nuslerp_row_wise": False, "nuslerp_flatten": False}),
        ("nuslerp", {"weight": 1.0, "nuslerp_row_wise": True, "nuslerp_flatten": False}),
    ],
    ids=str,
)
def test_views_with_the_other_sign_in_memory(method: str, parameters: dict[str, Any]) -> None:
    tensors = siblings(SHAPE, 2, FP32)

    def merge(tensors: list[torch.Tensor], **options: Any) -> torch.Tensor:
        return merge_tensors(tensors, method, base_index=0, parameters=parameters, **options)

    expected, surveys = merge(tensors), ResidentSurveys()
    for place in range(3):
        views = list(tensors)
        views[place] = negated(tensors[place])
        assert_same_bits(merge(views), expected)
        # The view of the same memory without the sign is another tensor, to kept surveys too.
        unsigned = list(views)
        unsigned[place] = torch._neg_view(views[place])
        for mine in (unsigned, views):
            assert_same_bits(merge(mine, surveys=surveys), merge([t.clone() for t in mine]))
    out = negated(torch.ones(SHAPE))
    assert merge(tensors, out=out) is out
    assert_same_bits(out.resolve_neg(), expected)


def test_the_native_copy_takes_at_least_one_thread() -> None:
    from fuseo1_kernels.backends import _cpu

    source, target = torch.arange(1000.0), torch.zeros(1000)
    for threads in (0, -1):
        with pytest.raises(ValueError, match="outside the contract"):
            _cpu.parallel_memcpy(target.data_ptr(), source.data_ptr(), source.nbytes, threads)
    for threads in (1, 3, 2000):
        target.zero_()
        _cpu.parallel_memcpy(target.data_ptr(), source.data_ptr(), source.nbytes, threads)
        assert torch.equal(target, source)
