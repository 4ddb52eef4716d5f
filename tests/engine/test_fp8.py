"""Merges of FP8 checkpoints: the bytes of the merge of the values that the codes stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fuseo1_kernels import MergeError, merge_checkpoints
from fuseo1_kernels.engine.verify import verify_model
from support.engine_runs import MIB
from support.models import (
    Family,
    State,
    base_state,
    make_family,
    model_config,
    read_model,
    tuned,
    weights,
    write_model,
)
from support.quantised import decoded, deepseek, fp8_config, quantise
from support.tensors import BF16

SMALL = (24, 20)  # blocks that do not divide the matrices


def families(
    tmp_path: Path, layout: Callable[[State], tuple[State, State]], config: dict[str, Any]
) -> tuple[Family, Family]:
    """Return FP8 targets beside a bf16 base, and the same models with their values in fp32."""
    base = base_state()
    stored, values = zip(*(layout(tuned(base, seed)) for seed in (1, 2)), strict=True)
    quantised = make_family(tmp_path / "fp8", [base, *stored])
    for number, state in enumerate(stored, 1):
        write_model(quantised.target(number), state, config=model_config(**config), shards=3)
    return quantised, make_family(tmp_path / "fp32", [base, *values])


def compressed(strategy: str, **weights: Any) -> dict[str, Any]:
    args = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True} | weights
    groups = {"group_0": {"targets": ["Linear"], "weights": args}}
    stated = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    return {"quantization_config": stated | {"config_groups": groups}}


def scaled_by(
    block: Callable[[torch.Tensor], tuple[int, int]], **activations: torch.Tensor
) -> Callable[[State], tuple[State, State]]:
    """Return compressed-tensors' layout with one scale for each block."""

    def layout(state: State) -> tuple[State, State]:
        stored, values = dict(state), dict(state)
        for name, tensor in state.items():
            if name.endswith("proj.weight"):
                codes, scales = quantise(tensor, block(tensor), BF16)
                values[name] = decoded(codes, scales, block(tensor))
                stored[name] = codes
                stored[f"{name}_scale"] = scales.flatten() if scales.numel() == 1 else scales
                for kind, value in activations.items():
                    stored[f"{name.removesuffix('weight')}{kind}"] = value.clone()
        return stored, values

    return layout


def raw(state: State) -> tuple[State, State]:
    stored = {
        n: t.to(torch.float8_e5m2) if n.endswith("proj.weight") else t for n, t in state.items()
    }
    return stored, {n: t.float() if t.dtype != BF16 else t for n, t in stored.items()}


LAYOUTS: dict[str, tuple[Callable[[State], tuple[State, State]], dict[str, Any]]] = {
    "deepseek": (lambda state: deepseek(state, SMALL), fp8_config(SMALL)),
    "deepseek, bf16 scales": (
        lambda state: deepseek(state, SMALL, dtype=BF16),
        fp8_config(SMALL),
    ),
    "one block": (deepseek, fp8_config()),
    "tensor": (
        scaled_by(lambda t: (t.shape[0], t.shape[1]), input_scale=torch.ones(1)),
        compressed("tensor"),
    ),
    "channel": (scaled_by(lambda t: (1, t.shape[1])), compressed("channel")),
    "block": (
        scaled_by(lambda t: SMALL),
        compressed("block", block_structure=list(SMALL)),
    ),
    "raw": (raw, {}),
}


@pytest.mark.parametrize("method", ["sce", "linear"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_merge_of_the_values(layout: str, method: str, tmp_path: Path) -> None:
    quantised, values = families(tmp_path, *LAYOUTS[layout])
    parameters = {"select_topk": 0.4} if method == "sce" else {"weight": 0.5}
    changes: dict[str, Any] = {"merge_method": method, "parameters": parameters}
    for family in (quantised, values):
        family.configure(dtype="bfloat16", **changes)
    merge_checkpoints(values.config, values.out)
    merge_checkpoints(quantised.config, quantised.out, threads=2, max_memory=40 * MIB)
    assert weights(quantised.out) == weights(values.out)
    assert "quantization_config" not in (quantised.out / "config.json").read_text()
    assert verify_model(quantised.out, recompute=None).problems == ()
    quantised.configure(**changes)  # no dtype: as the models were before they were quantised
    merge_checkpoints(quantised.config, quantised.out, overwrite=True)
    assert weights(quantised.out) == weights(values.out)


@pytest.mark.parametrize("name", ["scale", "scale_weight", "weight.scale"])
def test_scales_under_a_name_that_is_not_known(name: str, tmp_path: Path) -> None:
    """Without a quantization_config codes may have no scales; what may be one is not passed by."""
    family, _ = families(tmp_path, *LAYOUTS["raw"])
    state = read_model(family.target(1)) | {NAME.replace("weight", name): torch.ones(1)}
    write_model(family.target(1), state)
    with pytest.raises(MergeError, match=rf"target1: tensor {NAME} is F8_E5M2, and .*{name} may"):
        merge_checkpoints(family.config, family.out)


@pytest.mark.parametrize(
    ("shape", "scale", "fits"),
    [
        ((3, 16, 32), (3, 2, 2), True),
        ((3, 16, 32), (6, 2), True),
        ((3, 16, 32), (3, 16, 1), True),
        ((3, 16, 32), (), True),
        ((3, 16, 32), (2, 3, 2), False),
        ((3, 16, 32), (3, 1, 1), False),
        ((3, 12, 32), (5, 2), False),
        ((16, 32), (2, 1, 2), False),
        ((16, 32), (1, 32), False),
    ],
)
def test_shapes_of_scales(
    shape: tuple[int, ...], scale: tuple[int, ...], fits: bool, tmp_path: Path
) -> None:
    """Stacks of matrices have blocks of their own. A shape of another order is refused."""
    codes = torch.randn(shape).to(torch.float8_e4m3fn)
    scales = torch.rand(scale) + 1
    config = model_config(**fp8_config((8, 16)))
    write_model(tmp_path / "m", {"x.weight": codes, "x.weight_scale": scales}, config=config)
    merge = {"models": [{"model": str(tmp_path / "m")}], "merge_method": "passthrough"}
    if not fits:
        with pytest.raises(MergeError, match="does not fit the codes'"):
            merge_checkpoints(merge, tmp_path / "out")
        return
    merge_checkpoints(merge | {"dtype": "float32"}, tmp_path / "out")
    by_block = scales.expand(3, 1, 1) if not scale else scales.reshape(3, -1, scale[-1])
    for dimension in (1, 2):
        times = shape[dimension] // by_block.shape[dimension]
        by_block = by_block.repeat_interleave(times, dimension)
    assert torch.equal(read_model(tmp_path / "out")["x.weight"], codes.float() * by_block)


NAME = "model.layers.0.self_attn.q_proj.weight"
SCALE = f"{NAME}_scale_inv"


def with_scale(change: Callable[[torch.Tensor], Any]) -> Callable[[State], None]:
    def apply(state: State) -> None:
        state[SCALE] = change(state[SCALE])

    return apply


def first_scale(value: float) -> Callable[[State], None]:
    def change(scale: torch.Tensor) -> torch.Tensor:
        scale = scale.clone()
        scale.view(-1)[0] = value
        return scale

    return with_scale(change)


def nan_code(state: State) -> None:
    state[NAME].view(torch.uint8)[1, 2] = 0x7F


def zero_point(state: State) -> None:
    state[NAME.replace("weight", "weight_zero_point")] = torch.zeros(1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop(SCALE), "has no scale"),
        (with_scale(lambda s: s[:1]), "its shape .* does not fit the codes'"),
        (with_scale(lambda s: s.to(torch.int32)), "a scale cannot be I32"),
        (first_scale(0.0), "1 scale not a positive number, the first 0.0 at 0"),
        (first_scale(-1.0), "not a positive number, the first -1.0"),
        (first_scale(float("nan")), "the first nan"),
        (first_scale(float("inf")), "the first inf"),
        (nan_code, "1 NaN or infinite"),
        (zero_point, "has a zero point"),
        (lambda state: state.update({f"{NAME}_scale": state[SCALE].clone()}), "has two scales"),
        (lambda state: state.update({"model.norm.weight_scale": torch.ones(1)}), "and has none"),
    ],
)
def test_damage(damage: Callable[[State], Any], message: str, tmp_path: Path) -> None:
    family, _ = families(tmp_path, *LAYOUTS["deepseek"])
    state = read_model(family.target(2))
    damage(state)
    write_model(family.target(2), state, config=model_config(**fp8_config(SMALL)))
    with pytest.raises(MergeError, match=message) as caught:
        merge_checkpoints(family.config, family.out)
    assert "target2" in str(caught.value) and not family.out.exists()


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"weight_block_size": [0, 128]}, r"blocks of \[0, 128\]"),
        ({"weight_block_size": ["a", 128]}, r"blocks of \['a', 128\]"),
        ({"quant_method": "fbgemm_fp8"}, "quantised by 'fbgemm_fp8'"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            "format 'pack-quantized'",
        ),
    ],
)
def test_configs_that_are_refused(stated: dict[str, Any], message: str, tmp_path: Path) -> None:
    family, _ = families(tmp_path, *LAYOUTS["deepseek"])
    state = read_model(family.target(1))
    config = model_config(quantization_config=fp8_config(SMALL)["quantization_config"] | stated)
    write_model(family.target(1), state, config=config)
    with pytest.raises(MergeError, match=message):
        merge_checkpoints(family.config, family.out)
