"""merge_tensors and merge_state_dicts: SCE against its float64 oracle, its edge cases, and misuse."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache

import oracle
import pytest
import torch
from tensors import (
    BF16,
    DTYPES,
    FP16,
    FP32,
    QUIET_NAN,
    UGLY_SHAPES,
    assert_same_bits,
    bits,
    denormals_flushed,
    siblings,
)

from fuseo1_kernels import merge_state_dicts, merge_tensors
from fuseo1_kernels.errors import ConfigError, MergeError
from fuseo1_kernels.methods import VARIANTS

SHAPE_IDS = ["x".join(map(str, s)) or "0d" for s in UGLY_SHAPES]


def sce(topk: float = 1.0, variant: str = "fuseo1") -> dict[str, object]:
    return {"select_topk": topk, "variant": variant}


# --- against float64 ---


@cache
def square(rms: float, growing: bool = True) -> list[torch.Tensor]:
    # Alike, two weights may come so close (1 in 100,000 for seed 0) that weighted means lie nearer to a bf16 tie than
    # fp32 can tell: 7 in 100,000 differ then, and docs/figures.md says so. Here they are a thousandth apart.
    return siblings((1024, 1024), 3, BF16, rms=rms, growing=growing, seed=1)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("topk", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("rms", [1e-3, 1e-4])
@pytest.mark.parametrize(
    "growing", [True, False]
)  # alike: weights almost equal, means next to ties
def test_under_5_in_100_000_elements_differ_from_float64(
    growing: bool, rms: float, topk: float, variant: str
) -> None:
    tensors = square(rms, growing)
    merged = merge_tensors(tensors, "sce", base_index=0, parameters=sce(topk, variant))
    by_fp32 = oracle.merge(tensors[0], tensors[1:], topk, variant, oracle.fp32_scores)
    exact = oracle.rounded(by_fp32, BF16)
    different = int((bits(merged) != bits(exact)).sum())
    assert different < 5e-5 * merged.numel(), f"{different} of {merged.numel()}"
    assert (bits(merged) != bits(tensors[0])).any()


@pytest.mark.parametrize("topk", [0.5, 0.1])
@pytest.mark.parametrize("rms", [1e-3, 1e-4])
def test_fp32_scores_select_what_exact_ones_do_but_for_ties(rms: float, topk: float) -> None:
    base, *targets = [t.double().flatten() for t in square(rms)]
    d = [t - base for t in targets]
    exact = oracle.scores(d)
    mask = oracle.top_k(exact, topk)
    wrong = mask != oracle.top_k(oracle.fp32_scores(d), topk)
    threshold = exact[mask].min()
    assert ((exact[wrong] - threshold).abs() <= 2.0**-20 * threshold).all()
    assert int(wrong.sum()) < 2e-3 * int(mask.sum())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_output_dtype_against_float64(backend: str, variant: str) -> None:
    tensors = siblings((200, 201), 4, FP32, rms=0.01)  # midpoints between outputs are unlikely
    exact = oracle.merge(tensors[0], tensors[1:], 0.4, variant)
    for dtype, most in ((BF16, 6), (FP16, 30)):
        merged = merge_tensors(
            tensors,
            "sce",
            base_index=0,
            parameters=sce(0.4, variant),
            backend=backend,
            out_dtype=dtype,
        )
        assert int((bits(merged) != bits(oracle.rounded(exact, dtype))).sum()) <= most
    merged = merge_tensors(
        tensors, "sce", base_index=0, parameters=sce(0.4, variant), backend=backend, out_dtype=FP32
    )
    # b + num / den: each of a few roundings of numbers no larger than 0.2 is off by 2^-27 at most.
    assert (merged.double() - exact).abs().max() < 16 * 2.0**-27


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", UGLY_SHAPES, ids=SHAPE_IDS)
def test_every_backend_gives_the_same_bits(
    backend: str, shape: tuple[int, ...], variant: str
) -> None:
    for dtypes, topk in itertools.product((BF16, (FP16, FP32, BF16)), (0.0, 0.2, 1.0)):
        tensors = siblings(shape, 3, dtypes)
        one = merge_tensors(
            tensors, "sce", base_index=0, parameters=sce(topk, variant), backend="reference"
        )
        other = merge_tensors(
            tensors, "sce", base_index=0, parameters=sce(topk, variant), backend=backend, threads=2
        )
        assert_same_bits(other, one)
        assert other.shape == shape


# --- where SCE has nothing to go by: the table in docs/design.md ---


def mean_merge(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Uniform weights on all of d, in fp32."""
    base, *targets = [t.float() for t in tensors]
    d = [t - base for t in targets]
    s = d[0]
    for x in d[1:]:
        s = s + x
    num, den = torch.zeros_like(base), torch.zeros_like(base)
    for x in d:
        survives = torch.where(s >= 0, x > 0, x < 0)
        num = num + torch.where(survives, x, 0.0)
        den = den + survives.float()
    return torch.where(den > 0, base + num / den.clamp(min=1.0), base)


@pytest.mark.parametrize("variant", VARIANTS)
def test_select_topk_0(backend: str, variant: str) -> None:
    tensors = siblings((50, 50), 3, FP32, rms=0.1)
    merged = merge_tensors(
        tensors, "sce", base_index=0, parameters=sce(0.0, variant), backend=backend
    )
    assert_same_bits(merged, tensors[0] if variant == "mergekit" else mean_merge(tensors))


@pytest.mark.parametrize("variant", VARIANTS)
def test_k_rounds_down_to_0(backend: str, variant: str) -> None:
    tensors = siblings(99, 3, FP32, rms=0.1)
    merged = merge_tensors(
        tensors, "sce", base_index=0, parameters=sce(0.01, variant), backend=backend
    )
    assert_same_bits(merged, tensors[0] if variant == "mergekit" else mean_merge(tensors))
    merged = merge_tensors(
        tensors, "sce", base_index=0, parameters=sce(1 / 99, variant), backend=backend
    )
    changed = int((merged != tensors[0]).sum())
    assert changed == 1 if variant == "mergekit" else changed == 99


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_single_target(backend: str, variant: str) -> None:
    base, target = siblings((50, 50), 1, FP32, rms=0.1)
    whole = base + (target - base)
    for topk in (0.0, 0.5, 0.999):  # one target has no variance
        merged = merge_tensors(
            [base, target], "sce", base_index=0, parameters=sce(topk, variant), backend=backend
        )
        assert_same_bits(merged, base if variant == "mergekit" else whole)
    merged = merge_tensors(
        [base, target], "sce", base_index=0, parameters=sce(1.0, variant), backend=backend
    )
    assert_same_bits(merged, whole)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("targets", [2, 3, 4, 5, 7, 16])
def test_identical_targets(backend: str, targets: int, variant: str) -> None:
    base, target = siblings((50, 50), 1, BF16, rms=0.01)
    tensors = [base, *[target.clone() for _ in range(targets)]]
    for topk in (0.0, 0.5):
        merged = merge_tensors(
            tensors, "sce", base_index=0, parameters=sce(topk, variant), backend=backend
        )
        assert_same_bits(merged, base if variant == "mergekit" else target)
    merged = merge_tensors(
        tensors, "sce", base_index=0, parameters=sce(1.0, variant), backend=backend
    )
    assert_same_bits(merged, target)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("topk", [0.0, 0.5, 1.0])
def test_no_target_moved(backend: str, topk: float, variant: str) -> None:
    base = siblings((50, 50), 1, BF16)[0]
    base[0, :5] = -0.0
    merged = merge_tensors(
        [base, *(base.clone() for _ in range(3))],
        "sce",
        base_index=0,
        parameters=sce(topk, variant),
        backend=backend,
    )
    assert_same_bits(merged, base)


def test_the_mergekit_variant_takes_equal_weights_below_a_mean_square_of_one_millionth(
    backend: str,
) -> None:
    base = torch.zeros(1000)
    for scale, equal in ((1e-4, True), (1e-2, False)):
        targets = [torch.full((1000,), scale), torch.full((1000,), 3 * scale)]
        weighted = (scale * 1 + 3 * scale * 9) / 10
        for variant, expected in (
            ("fuseo1", weighted),
            ("mergekit", 2 * scale if equal else weighted),
        ):
            merged = merge_tensors(
                [base, *targets], "sce", base_index=0, parameters=sce(1.0, variant), backend=backend
            )
            torch.testing.assert_close(merged, torch.full((1000,), expected), rtol=1e-6, atol=0.0)


def test_the_mergekit_variant_masks_what_is_merged(backend: str) -> None:
    base = torch.zeros(1000, dtype=FP32)
    targets = [torch.linspace(1, 2, 1000), -torch.linspace(0.5, 1, 1000)]
    all_merged = merge_tensors(
        [base, *targets], "sce", base_index=0, parameters=sce(0.25), backend=backend
    )
    masked = merge_tensors(
        [base, *targets], "sce", base_index=0, parameters=sce(0.25, "mergekit"), backend=backend
    )
    assert torch.count_nonzero(all_merged) == 1000
    assert not masked[:750].any() and masked[750:].all()


def test_a_tiny_weight_is_kept_when_the_caller_flushes_denormals(cpu: str) -> None:
    base = torch.zeros(600)
    small, large = torch.zeros(600), torch.zeros(600)
    small[:300], large[300:] = 2.0**-5, 2.0**60  # weights 2^-130 to 1
    expected = merge_tensors([base, small, large], "sce", base_index=0, backend="reference")
    assert (expected[:300] == 2.0**-5).all()
    with denormals_flushed():
        merged = merge_tensors([base, small, large], "sce", base_index=0, backend=cpu)
    assert_same_bits(merged, expected)


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


def error(call: Callable[[], object], kind: type[MergeError] = MergeError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def merge_error(tensors: list[torch.Tensor], **options: object) -> str:
    arguments = {"method": "sce", "base_index": 0, **options}
    return error(lambda: merge_tensors(tensors, **arguments))  # type: ignore[arg-type]


def test_misuse_is_explained(backend: str) -> None:
    tensors = siblings((4, 5), 2)
    base, *_ = tensors
    assert "merge method 'slerp'" in merge_error(tensors, method="slerp", backend=backend)
    assert "base_index 3, but there are 3 tensors" in merge_error(tensors, base_index=3)
    assert "base_index -4, but there are 3 tensors" in merge_error(tensors, base_index=-4)
    assert "but there are 0 tensors" in merge_error([])
    assert merge_error([base]) == "a merge needs a base and at least one target"
    assert "nonfinite: must be one of error, propagate" in merge_error(tensors, nonfinite="ignore")
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


@pytest.mark.parametrize("value", [1.5, -0.1, "abc", float("nan"), None, True, [0.5]])
def test_a_select_topk_that_is_no_fraction_is_refused(value: object) -> None:
    tensors = siblings(4, 2)
    message = error(
        lambda: merge_tensors(tensors, "sce", base_index=0, parameters={"select_topk": value}),
        ConfigError,
    )
    assert message == f"select_topk: must be a number in [0, 1], not {value!r}"


def test_other_parameters_that_are_wrong() -> None:
    tensors = siblings(4, 2)

    def message(**parameters: object) -> str:
        return error(
            lambda: merge_tensors(tensors, "sce", base_index=0, parameters=parameters), ConfigError
        )

    assert "no parameter 'select_top_k'; did you mean 'select_topk'?" in message(select_top_k=0.5)
    assert "variant: must be one of fuseo1, mergekit, not 'other'" in message(variant="other")
    assert "int8_mask: must be true or false" in message(int8_mask="yes")


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
    places = [0, 255, 256, 777, 1999]
    for place, model, value in zip(
        places,
        (0, 1, 2, 3, 0),
        (torch.nan, torch.inf, -torch.inf, torch.nan, torch.inf),
        strict=True,
    ):
        broken[model][place] = value
        for t in healthy[1:]:
            t[place] = healthy[0][place]
    # An element that takes no part is like one that no model moved.
    healthy = [t.float() for t in healthy]
    for t in healthy[1:]:
        t[places] = healthy[0][places]
    for dtype in DTYPES:
        options = {"parameters": sce(topk, variant), "backend": backend, "out_dtype": dtype}
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


# --- state dictionaries and modules ---


class Model(torch.nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = torch.nn.Linear(9, 5, dtype=BF16)
        self.norm = torch.nn.BatchNorm1d(5)  # has an integer buffer
        with torch.no_grad():
            self.norm.weight.add_(torch.randn(5) * 0.01)


def models(n: int = 3) -> list[Model]:
    return [Model(seed) for seed in range(n)]


def test_modules_and_dictionaries(backend: str) -> None:
    modules = models()
    states = [m.state_dict() for m in modules]
    before = [{k: v.clone() for k, v in s.items()} for s in states]
    for given in (modules, states, [modules[0], states[1], modules[2]]):
        merged = merge_state_dicts(given, "sce", base=1, parameters=sce(0.5), backend=backend)
        assert list(merged) == list(states[0])
        for name, tensor in merged.items():
            tensors = [s[name] for s in states]
            if tensors[0].is_floating_point():
                expected = merge_tensors(
                    tensors, "sce", base_index=1, parameters=sce(0.5), backend="reference"
                )
                assert_same_bits(tensor, expected)
            else:
                assert torch.equal(tensor, tensors[0])
            assert not tensor.requires_grad
    for state, was in zip(states, before, strict=True):
        assert all(torch.equal(state[k], was[k]) for k in was)
    modules[0].load_state_dict(merged)


def test_models_by_name(backend: str) -> None:
    states = {name: m.state_dict() for name, m in zip("abc", models(), strict=True)}
    by_name = merge_state_dicts(states, "sce", base="c", backend=backend)
    by_place = merge_state_dicts(list(states.values()), "sce", base=2, backend=backend)
    for name, tensor in by_name.items():
        assert torch.equal(tensor, by_place[name])


def test_integer_tensors_are_copied_if_equal() -> None:
    states = [{"w": torch.randn(4), "steps": torch.tensor([3, 4])} for _ in range(3)]
    merged = merge_state_dicts(states, "sce", base=0)
    assert torch.equal(merged["steps"], states[0]["steps"])
    assert all(merged["steps"].data_ptr() != s["steps"].data_ptr() for s in states)
    states[2]["steps"] = torch.tensor([3, 5])
    message = error(lambda: merge_state_dicts(states, "sce", base=0))
    assert "steps" in message and "differs between the models" in message
    states[2]["steps"] = torch.tensor([3.0, 4.0])  # equal, but not the same thing
    for order in (states, states[::-1]):
        assert "steps" in error(lambda: merge_state_dicts(order, "sce", base=0))  # noqa: B023


def test_names_that_not_all_models_have() -> None:
    states = [{"b": torch.randn(4), "a": torch.randn(4)} for _ in range(3)]
    states[1]["extra"] = torch.randn(4)
    message = error(lambda: merge_state_dicts(states, "sce", base=0))
    assert "model 1 has tensors that not all models have: extra" in message
    merged = merge_state_dicts(states, "sce", base=0, strict=False)
    assert list(merged) == ["b", "a"]
    del states[2]["b"]
    message = error(
        lambda: merge_state_dicts(dict(zip("xyz", states, strict=True)), "sce", base="x")
    )
    assert "model 'x' has tensors that not all models have: b" in message
    assert list(merge_state_dicts(states, "sce", base=0, strict=False)) == ["a"]


def test_misuse_of_merge_state_dicts() -> None:
    states = [{"w": torch.randn(4)} for _ in range(3)]
    assert "base 7 is none of the models: 0, 1, 2" in error(
        lambda: merge_state_dicts(states, "sce", base=7)
    )
    named = dict(zip("ab", states, strict=False))
    assert "base 'c' is none of the models: 'a', 'b'" in error(
        lambda: merge_state_dicts(named, "sce", base="c")
    )
    assert "at least one other model" in error(lambda: merge_state_dicts(states[:1], "sce", base=0))
    assert "base 0 is none" in error(lambda: merge_state_dicts([], "sce", base=0))
    assert "model 1 is neither a module nor a mapping" in error(
        lambda: merge_state_dicts([states[0], [1, 2]], "sce", base=0)  # type: ignore[list-item]
    )
    assert "model 0 is neither" in error(
        lambda: merge_state_dicts([{"w": 3}, states[0]], "sce", base=0)  # type: ignore[dict-item]
    )
    for method, parameters in (("ties", None), ("sce", {"select_topk": 2})):
        message = error(
            lambda: merge_state_dicts(states, method, base=0, parameters=parameters),  # noqa: B023
            ConfigError,
        )
        assert not message.startswith("tensor")


def test_what_is_wrong_with_a_tensor_is_said_with_its_name() -> None:
    states = [{"ok": torch.randn(4), "bad": torch.randn(4)} for _ in range(3)]
    states[2]["bad"][1] = torch.nan
    message = error(lambda: merge_state_dicts(states, "sce", base=1))
    assert message.startswith("tensor bad: NaN or infinite elements: model 2 has 1")
    assert merge_state_dicts(states, "sce", base=1, nonfinite="propagate")["bad"].isnan().sum() == 1
    states[2]["bad"] = torch.randn(5)
    assert error(lambda: merge_state_dicts(states, "sce", base=1)).startswith("tensor bad: ")


# --- processes of their own: what is imported, which kernels run ---


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_package_imports_no_framework() -> None:
    done = python(
        "import sys, fuseo1_kernels\n"
        "dir(fuseo1_kernels)\n"
        "print([m for m in ('torch', 'numpy', 'pydantic', 'transformers', 'huggingface_hub')"
        " if m in sys.modules])"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_cpu_backend_imports_no_torch() -> None:
    done = python(
        "import sys\nfrom fuseo1_kernels.backends import load_backend\nload_backend('cpu')\n"
        "print('torch' in sys.modules)"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    done = python("import fuseo1_kernels\nfuseo1_kernels.merge_everything")
    assert (
        "AttributeError: module 'fuseo1_kernels' has no attribute 'merge_everything'" in done.stderr
    )


_LOAD = (
    "from fuseo1_kernels.backends import load_backend\nfrom fuseo1_kernels import _cpu\n"
    "b = load_backend('auto')\nprint(_cpu.isa(), '|', b.description)"
)


def test_fuseo1_isa_is_honoured() -> None:
    done = python(_LOAD, FUSEO1_ISA="baseline")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("baseline | baseline kernels")


def test_an_unknown_fuseo1_isa_is_a_backend_error() -> None:
    done = python(_LOAD, FUSEO1_ISA="nonsense")
    assert done.returncode == 1
    assert "BackendError: FUSEO1_ISA=nonsense: this machine or build has no kernels" in done.stderr
    assert "available: baseline" in done.stderr
