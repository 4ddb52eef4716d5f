"""merge_tensors: its arguments, NaN and infinity, and misuse."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from fuseo1_kernels import merge_tensors
from fuseo1_kernels.errors import ConfigError, MergeError
from fuseo1_kernels.methods.sce import VARIANTS
from support.calls import error, sce
from support.tensors import BF16, DTYPES, FP16, FP32, QUIET_NAN, assert_same_bits, bits, siblings


def merge_error(tensors: list[torch.Tensor], **options: object) -> str:
    arguments = {"method": "sce", "base_index": 0, **options}
    return error(lambda: merge_tensors(tensors, **arguments))  # type: ignore[arg-type]


# --- arguments ---


def test_the_base_may_stand_anywhere(backend: str) -> None:
    base, *targets = siblings((40, 41), 3)
    expected = merge_tensors([base, *targets], "sce", base_index=0, backend=backend)
    for place in range(4):
        tensors = [*targets[:place], base, *targets[place:]]
        for index in (place, place - 4):
            assert_same_bits(
                merge_tensors(tensors, "sce", base_index=index, backend=backend), expected
            )
        assert tensors[place] is base


def test_the_defaults_are_select_topk_1_and_the_authors_variant(backend: str) -> None:
    tensors = siblings((40, 41), 3, rms=1e-4)
    explicit = merge_tensors(tensors, "sce", base_index=0, parameters=sce(1.0), backend=backend)
    assert_same_bits(merge_tensors(tensors, "sce", base_index=0, backend=backend), explicit)
    assert_same_bits(merge_tensors(tensors, "sce", base_index=0, parameters={}), explicit)
    ignored = {"select_topk": 1, "int8_mask": True}
    assert_same_bits(merge_tensors(tensors, "sce", base_index=0, parameters=ignored), explicit)


def test_the_outputs_dtype(backend: str) -> None:
    for base, other in itertools.product(DTYPES, DTYPES):
        tensors = siblings(300, 2, (base, other, other))
        merged = merge_tensors(tensors, "sce", base_index=0, backend=backend)
        assert merged.dtype == torch.promote_types(base, other)
    tensors = siblings(300, 2)
    wide = merge_tensors(tensors, "sce", base_index=0, backend=backend, out_dtype=FP32)
    for options, dtype in (
        ({"dtype": FP16}, FP16),
        ({"dtype": FP16, "out_dtype": FP32}, FP32),
        ({"out": torch.empty(300, dtype=FP16)}, FP16),
    ):
        merged = merge_tensors(tensors, "sce", base_index=0, backend=backend, **options)
        assert_same_bits(merged, wide.to(dtype))  # never rounded twice: fp32 is what is rounded


def test_out(backend: str) -> None:
    tensors = siblings((31, 17), 3)
    expected = merge_tensors(tensors, "sce", base_index=0)
    for out in (
        torch.empty(31, 17, dtype=BF16),
        torch.empty(17, 31, dtype=BF16).t(),
        torch.zeros(31, 40, dtype=BF16)[:, 5:22],
    ):
        before = [t.clone() for t in tensors]
        assert merge_tensors(tensors, "sce", base_index=0, out=out, backend=backend) is out
        assert_same_bits(out, expected)
        for t, b in zip(tensors, before, strict=True):
            assert_same_bits(t, b)


@pytest.mark.parametrize("method", ["sce", "ties"])
def test_a_refused_merge_leaves_out_as_it_was(backend: str, method: str) -> None:
    """A survey may use the memory of a result that is new, but not of one that is somebody's."""
    parameters = {"sce": {"select_topk": 0.3}, "ties": {"density": 0.3, "weight": 1.0}}[method]
    tensors = siblings((300, 700), 3)
    tensors[2][250, 3] = torch.inf
    out = torch.full((300, 700), 7.0, dtype=BF16)
    message = error(
        lambda: merge_tensors(
            tensors, method, base_index=0, parameters=parameters, out=out, backend=backend
        )
    )
    assert "tensor 2 has 1" in message
    assert (out == 7).all()


def test_misuse_is_explained(backend: str) -> None:
    tensors = siblings((4, 5), 2)
    base, *_ = tensors
    assert "merge method 'rum'" in merge_error(tensors, method="rum", backend=backend)
    assert "slerp merges exactly 1 model beside the base, not 2" in merge_error(
        tensors, method="slerp", backend=backend
    )
    assert "base_index 3, but there are 3 tensors" in merge_error(tensors, base_index=3)
    assert "base_index -4, but there are 3 tensors" in merge_error(tensors, base_index=-4)
    assert "but there are 0 tensors" in merge_error([])
    assert merge_error([base]) == "sce merges at least 1 model beside the base, not 0"
    assert "nonfinite: must be error or propagate" in merge_error(tensors, nonfinite="ignore")
    assert "shape (5, 4), tensor 0 (4, 5)" in merge_error([base, base.t()], backend=backend)
    assert "torch.float64; supported: bfloat16, float16, float32" in merge_error(
        [base, base.double()]
    )
    assert "torch.float64" in merge_error(tensors, out_dtype=torch.float64)
    for name in ("dtype", "out_dtype"):
        assert merge_error(tensors, **{name: "bfloat16"}) == (
            f"{name} must be a torch.dtype such as torch.bfloat16, not 'bfloat16'"
        )
    assert "no backend 'tpu'" in merge_error(tensors, backend="tpu")
    assert "1 to 64 targets" in merge_error([base] * 66, backend=backend)
    assert "shares memory" in merge_error(tensors, out=tensors[1], backend=backend)
    for out in (torch.empty(4, 5), torch.empty(20, dtype=BF16)):
        assert "the result is" in merge_error(tensors, out=out, out_dtype=BF16, backend=backend)


# --- NaN and infinity ---


def test_nonfinite_elements_stop_the_merge(backend: str) -> None:
    for base_index in (0, 1, -1):
        tensors = siblings((20, 20), 3, FP32)
        tensors[0][0, :2] = torch.nan
        tensors[2][3, 3] = -torch.inf
        message = merge_error(tensors, base_index=base_index, backend=backend)
        assert "tensor 0 has 2, tensor 2 has 1" in message and "propagate" in message


def test_differences_that_overflow_stop_the_merge(backend: str) -> None:
    base, target = torch.full((9,), -3e38), torch.full((9,), -3e38)
    target[4] = 3e38
    assert "at 1 elements the task vectors overflow fp32" in merge_error(
        [base, target], backend=backend
    )
    merged = merge_tensors(
        [base, target], "sce", base_index=0, nonfinite="propagate", backend=backend
    )
    assert merged[4].isnan() and torch.isfinite(merged).sum() == 8


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("topk", [0.3, 1.0])
def test_nonfinite_elements_propagate_to_themselves_only(
    backend: str, topk: float, variant: str
) -> None:
    healthy = siblings(2000, 3, (BF16, FP16, FP32), rms=0.01)
    broken = [t.clone() for t in healthy]
    bad = {0: torch.nan, 255: torch.inf, 256: -torch.inf, 777: torch.nan, 1999: torch.inf}
    places = list(bad)
    for place, model in zip(places, (0, 1, 2, 3, 0), strict=True):
        broken[model][place] = bad[place]
    # An element that takes no part is like one that no model moved.
    healthy = [t.float() for t in healthy]
    for t in healthy[1:]:
        t[places] = healthy[0][places]
    for dtype in DTYPES:
        options: dict[str, Any] = {
            "parameters": sce(topk, variant),
            "backend": backend,
            "out_dtype": dtype,
        }
        expected = merge_tensors(healthy, "sce", base_index=0, **options)
        merged = merge_tensors(broken, "sce", base_index=0, nonfinite="propagate", **options)
        nan = torch.zeros(2000, dtype=torch.bool)
        nan[places] = True
        assert (bits(merged)[nan] == QUIET_NAN[dtype]).all()
        assert_same_bits(merged[~nan], expected[~nan])


def test_an_output_that_overflows_its_dtype(backend: str) -> None:
    base = torch.zeros(500)
    target = torch.full((500,), 70_000.0)
    target[:497] = 65_519.0  # rounds down to the largest fp16
    message = merge_error([base, target], out_dtype=FP16, backend=backend)
    assert message.startswith("3 merged elements overflow float16; choose a wider out_dtype")
    merged = merge_tensors(
        [base, target], "sce", base_index=0, out_dtype=FP16, nonfinite="propagate", backend=backend
    )
    assert (merged[:497] == 65_504.0).all() and torch.isposinf(merged[497:]).all()
    assert torch.isfinite(merge_tensors([base, target], "sce", base_index=0, out_dtype=BF16)).all()


def test_what_is_not_finite_is_named_without_a_survey(backend: str) -> None:
    """Methods that need none ask whose fault it was when the result shows it."""
    tensors = siblings((40, 50), 2, torch.float32)
    tensors[2][3, 4] = torch.inf
    weight = {"weight": 1.0}
    for method, given, parameters in (
        ("linear", tensors, weight),
        ("passthrough", tensors[2:], {}),
        ("nuslerp", tensors[1:], {**weight, "nuslerp_flatten": False}),
    ):
        with pytest.raises(MergeError, match=f"tensor {len(given) - 1} has 1"):
            merge_tensors(given, method, parameters=parameters, backend=backend)
        merged = merge_tensors(
            given, method, parameters=parameters, backend=backend, nonfinite="propagate"
        )
        assert not merged[3].isfinite().all() and merged[:3].isfinite().all()
    huge = [torch.full((300,), 3e38), torch.full((300,), 2e38)]
    with pytest.raises(MergeError, match="300 merged elements overflow float32"):
        merge_tensors(huge, "linear", parameters={"weight": 1.0, "normalize": False})


@pytest.mark.parametrize(
    "values", [(1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0), (0.0, 2.0, 1.0)]
)
def test_tolerances_of_nothing(backend: str, values: tuple[float, ...]) -> None:
    """Models alike, opposed, zero: with a tolerance of 0 there is no division by 0 either."""
    tensors = [torch.full((10,), value) for value in values]
    for method, parameters in (("karcher", {"tol": 0.0}), ("multislerp", {"eps": 0, "weight": 1})):
        merged = merge_tensors(tensors, method, parameters=parameters, backend=backend)
        assert merged.isfinite().all()
        if values[0] == values[1]:
            assert torch.equal(merged, tensors[0])


def test_empty_rows(backend: str) -> None:
    tensors = [torch.empty(3, 0)] * 3
    merged = merge_tensors(
        tensors, "model_stock", base_index=0, parameters={"filter_wise": True}, backend=backend
    )
    assert merged.shape == (3, 0)


NO_FRACTIONS: tuple[Any, ...] = (1.5, -0.1, "abc", float("nan"), None, True, [0.5])
CANCEL = {"weight": [0.1, 0.2, -0.3]}
NEEDED = {"ties": "weight", "slerp": "t", "nearswap": "t"}


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        *(
            ("sce", {"select_topk": x}, f"select_topk: must be a number in [0, 1], not {x!r}")
            for x in NO_FRACTIONS
        ),
        ("sce", {"select_top_k": 1}, "no parameter 'select_top_k'; did you mean 'select_topk'?"),
        ("sce", {"variant": "other"}, "variant: must be one of fuseo1, mergekit, not 'other'"),
        ("sce", {"int8_mask": "yes"}, "int8_mask: must be true or false"),
        *(
            (method, CANCEL, f"{method}: the weights sum to 0")
            for method in ("linear", "multislerp")
        ),
        *(
            (method, {}, f"{method} needs the parameter '{name}'")
            for method, name in NEEDED.items()
        ),
        *((method, {name: None}, f"{name}: must be a number") for method, name in NEEDED.items()),
    ],
)
def test_parameters_that_are_refused(method: str, parameters: dict[str, Any], message: str) -> None:
    tensors = siblings((20, 30), 1 if method in NEEDED else 2, torch.float32)
    base = None if parameters is CANCEL else 0
    found = error(
        lambda: merge_tensors(tensors, method, base_index=base, parameters=parameters), ConfigError
    )
    assert message in found
    assert ("not None" in found) == (None in parameters.values())


def test_ids_and_seeds_of_random_masks() -> None:
    tensors = siblings((20, 30), 2, torch.float32)
    arguments: dict[str, Any] = {
        "base_index": 0,
        "parameters": {"weight": 1.0, "density": 0.5},
    }
    with pytest.raises(MergeError, match="ids must differ, as text too"):
        merge_tensors(tensors, "dare_ties", ids=["b", 1, "1"], **arguments)
    with pytest.raises(ConfigError, match="random_seed: must be a whole number, not 'q'"):
        merge_tensors(tensors, "dare_ties", **arguments, random_seed="q")  # type: ignore[arg-type]
