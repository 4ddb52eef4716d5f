"""The tensors that survey and fuse take and write to, and misuse."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from fuseo1_kernels import fuse, survey
from fuseo1_kernels.backends.contract import FuseParams
from support.calls import error
from support.fuse_cases import MIXED
from support.hard_scores import params_for
from support.tensors import BF16, FP32, assert_same_bits, learned, siblings


def test_inputs_need_not_be_contiguous_and_stay_untouched(backend: str) -> None:
    base, *targets = siblings((120, 66), 3, MIXED)
    awkward = [
        base.t().contiguous().t(),
        targets[0].repeat(1, 2)[:, ::1][:, :66],
        targets[1].clone(),
    ]
    awkward.append(torch.stack([targets[2], targets[2]], dim=-1)[..., 0])
    assert sum(t.is_contiguous() for t in awkward) == 1
    before = [t.clone() for t in awkward]
    result = survey(awkward[0], awkward[1:], select_topk=0.5, backend=backend)
    expected = survey(base, targets, select_topk=0.5, backend="reference")
    assert learned(result) == learned(expected)
    params = params_for(result, masked=True)
    merged = fuse(awkward[0], awkward[1:], params, backend=backend)
    assert_same_bits(merged, fuse(base, targets, params, backend="reference"))
    for t, b in zip(awkward, before, strict=True):
        assert_same_bits(t, b)


def test_an_output_need_not_be_contiguous(backend: str) -> None:
    """Neither a transposed one, nor every second element of a buffer, whose others stay."""
    base, *targets = siblings((33, 65))
    params = FuseParams((1.0, 0.5, 0.25))
    expected = fuse(base, targets, params, out_dtype=FP32, backend="reference")
    buffer = torch.full((33, 130), 9.0)
    for out in (torch.full((65, 33), 9.0).t(), buffer[:, ::2]):
        assert fuse(base, targets, params, out=out, backend=backend) is out
        assert_same_bits(out, expected)
    assert (buffer[:, 1::2] == 9.0).all()


def test_parameters_and_autograd_leaves_as_inputs(backend: str) -> None:
    base, *targets = [torch.nn.Parameter(t) for t in siblings(100, 2, FP32)]
    merged = fuse(base, targets, FuseParams((1.0, 1.0)), backend=backend)
    assert not merged.requires_grad and merged.grad_fn is None


def test_misuse_of_the_ops_is_explained(backend: str) -> None:
    base, *targets = siblings((4, 5), 2)
    equal = FuseParams((1.0, 1.0))

    def run(
        base: torch.Tensor = base, targets: Sequence[torch.Tensor] = targets, **kw: object
    ) -> str:
        return error(lambda: fuse(base, targets, equal, backend=backend, **kw))  # type: ignore[arg-type]

    assert run(targets=[]) == "2 weights for 0 targets"
    assert "target 2 has shape (5, 4), the base (4, 5)" in run(targets=[targets[0], targets[1].t()])
    assert "the base is torch.float64; supported: bfloat16, float16, float32" in run(base.double())
    assert "target 1 is torch.int64" in run(targets=[t.long() for t in targets])
    assert "the base is on meta" in run(base.to("meta"))
    assert run(targets=targets[:1]) == "2 weights for 1 targets"
    assert "the output dtype is torch.float64" in run(out_dtype=torch.float64)
    assert run(out_dtype="bfloat16") == (
        "out_dtype must be a torch.dtype such as torch.bfloat16, not 'bfloat16'"
    )
    for out in (torch.empty(4, 5), torch.empty(5, 4, dtype=BF16), torch.empty(20, dtype=BF16)):
        assert "the result is torch.bfloat16 (4, 5) on cpu" in run(out=out, out_dtype=BF16)
    assert "requires grad" in run(out=torch.empty(4, 5, requires_grad=True))
    for topk in (1.5, -0.1, float("nan"), float("inf")):
        message = error(lambda: survey(base, targets, select_topk=topk, backend=backend))  # noqa: B023
        assert message == f"select_topk: must be a number in [0, 1], not {topk!r}"


def test_an_output_that_shares_memory_with_an_input_is_refused(backend: str) -> None:
    base, *targets = siblings((16, 16), 2)
    store = torch.empty(600, dtype=BF16)
    overlapping = store[:256].view(16, 16)
    transposed = store[:256].view(16, 16).t()
    equal = FuseParams((1.0, 1.0))
    for inputs, out in (
        ([base, *targets], base),
        ([base, *targets], targets[1]),
        ([overlapping, *targets], store[100:356].view(16, 16)),
        ([overlapping, *targets], store.as_strided((16, 16), (1, 16), 255)),
        ([transposed, *targets], store[:256].view(16, 16)),
    ):
        message = error(lambda: fuse(inputs[0], inputs[1:], equal, out=out, backend=backend))  # noqa: B023
        assert "out shares memory with an input" in message


def test_an_output_right_beside_an_input_is_accepted(backend: str) -> None:
    store = torch.zeros(200)
    expected = torch.ones(100)
    base, out = store[:100], store[100:]
    fuse(base, [torch.ones(100)], FuseParams((1.0,)), out=out, backend=backend)
    assert_same_bits(out, expected)


def test_an_output_whose_elements_share_memory_is_refused() -> None:
    base, *targets = siblings((4, 5), 2)
    store = torch.empty(100, dtype=BF16)
    for strides in ((0, 1), (4, 1), (1, 3), (1, 1), (2, 2)):
        out = store.as_strided((4, 5), strides)
        message = error(lambda: fuse(base, targets, FuseParams((1.0, 1.0)), out=out))  # noqa: B023
        assert "out overlaps itself" in message
    for strides in ((5, 1), (1, 4), (9, 2), (2, 13)):
        fuse(base, targets, FuseParams((1.0, 1.0)), out=store.as_strided((4, 5), strides))


def test_an_unknown_backend_is_named() -> None:
    base, *targets = siblings(4, 2)
    assert "no backend 'gpu'" in error(lambda: survey(base, targets, backend="gpu"))


@pytest.mark.parametrize("threads", [-1, -100])
def test_a_negative_number_of_threads_is_refused(backend: str, threads: int) -> None:
    base, *targets = siblings(4, 2)
    error(lambda: survey(base, targets, backend=backend, threads=threads))
