"""Finds the scales of FP8 weights: DeepSeek's blocks, and compressed-tensors' `float-quantized`.

A value is its code times the scale of its block (csrc/include/fuseo1/decode.h). Sources:
https://huggingface.co/deepseek-ai/DeepSeek-V3 (README_WEIGHTS.md), https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ..errors import CheckpointError, printable
from .header import MERGEABLE, TensorInfo

#: The dtypes of codes.
CODES = frozenset({"F8_E4M3", "F8_E5M2"})

_KEY = "quantization_config"
#: What a weight's scale is called: the weight's name and one of these.
_SCALES = ("_scale_inv", "_scale")
#: Scales of activations, which a merge has no use for.
_ACTIVATIONS = re.compile(r".*\.(?:input_scale|output_scale|k_scale|v_scale|q_scale)")
_FORMATS = ("float-quantized", "naive-quantized")


@dataclass(frozen=True)
class Scaled:
    """How the values of a matrix of codes are found.

    Attributes:
        scale: its scales, one for each block, row-major; None: all are 1.
        block: rows and columns of a block; blocks at the ends may be smaller.
    """

    scale: TensorInfo | None
    block: tuple[int, int]


def find_scales(
    model: str, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> tuple[Mapping[str, TensorInfo], Mapping[str, Scaled]]:
    """Return the tensors without those that are scales, and for each tensor of codes its scales.

    Args:
        model: the model's name, for messages.
        tensors: all that the model holds.
        config: its config.json.

    Raises:
        CheckpointError: a scale is missing, has another shape or dtype than the config says, or belongs to no codes.
    """
    codes = [info for info in tensors.values() if info.dtype in CODES]
    if not codes:
        return tensors, {}
    stated = config.get(_KEY)
    scheme = _Scheme(model, stated if isinstance(stated, dict) else None)
    scaled = {info.name: scheme.scaled(info, tensors) for info in codes}
    used = {each.scale.name for each in scaled.values() if each.scale}
    left = {n: t for n, t in tensors.items() if n not in used and not _ACTIVATIONS.fullmatch(n)}
    for name in left:
        of = next((name.removesuffix(end) for end in _SCALES if name.endswith(end)), None)
        if of is not None and of in tensors:
            raise CheckpointError(
                f"model {model}: tensor {printable(name)} is a scale of {printable(of)}, which is"
                f" {tensors[of].dtype} and has none"
            )
    called = {n.rpartition(".")[0]: n for n in left if "scale" in n.rpartition(".")[2]}
    for info in (info for info in codes if scaled[info.name].scale is None):
        beside = called.get(info.name) or called.get(info.name.rpartition(".")[0])
        if beside is not None:
            raise CheckpointError(
                f"model {model}: tensor {printable(info.name)} is {info.dtype}, and {printable(beside)} may be its"
                f" scale; scales are called {printable(info.name)}{_SCALES[0]} or {_SCALES[1]}"
            )
    return left, scaled


class _Scheme:
    """The scheme of the codes, as config.json states it."""

    def __init__(self, model: str, stated: Mapping[str, Any] | None) -> None:
        self._model = model
        self._blocks = [*_blocks(stated or {})]
        self._states_scales = stated is not None
        for block in self._blocks:
            if not all(type(n) is int and n > 0 for n in block):
                raise self._error(f"{_KEY} of config.json has blocks of {list(block)}")
        method, form = (stated or {}).get("quant_method"), (stated or {}).get("format")
        if method not in (None, "fp8", "compressed-tensors") or (
            method == "compressed-tensors" and form not in (None, *_FORMATS)
        ):
            raise self._error(
                f"its FP8 weights are quantised by {method!r:.60}"
                + (f", format {form!r:.60}" if form else "")
                + f"; read are fp8 and compressed-tensors' {_FORMATS[0]}"
            )

    def scaled(self, codes: TensorInfo, tensors: Mapping[str, TensorInfo]) -> Scaled:
        """Return the scales of a tensor. Raises CheckpointError."""
        found = [tensors[codes.name + end] for end in _SCALES if codes.name + end in tensors]
        if len(found) > 1:
            raise self._error(
                f"tensor {printable(codes.name)} has two scales, {' and '.join(printable(t.name) for t in found)}"
            )
        rows, columns = prod(codes.shape[:-1]), codes.shape[-1] if codes.shape else 1
        if not found:
            if self._states_scales:
                raise self._error(
                    f"tensor {printable(codes.name)} is {codes.dtype} and has no scale"
                    f" {printable(codes.name + _SCALES[0])} or {printable(codes.name + _SCALES[1])}"
                )
            return Scaled(None, (max(rows, 1), max(columns, 1)))
        [scale] = found
        if scale.dtype not in MERGEABLE:
            raise self._error(f"tensor {printable(scale.name)}: a scale cannot be {scale.dtype}")
        if f"{codes.name.removesuffix('weight')}weight_zero_point" in tensors:
            raise self._error(f"tensor {printable(codes.name)} has a zero point, which FP8 has not")
        candidates = (*self._blocks, (rows, columns), (1, columns))
        for block in candidates:
            if _fits(scale.shape, codes.shape, block):
                return Scaled(scale, (max(block[0], 1), max(block[1], 1)))
        raise self._error(
            f"tensor {printable(scale.name)}: its shape {list(scale.shape)} does not fit the codes'"
            f" {list(codes.shape)} in blocks of "
            + ", ".join(" x ".join(map(str, block)) for block in candidates)
        )

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"model {self._model}: {problem}")


def _blocks(stated: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the blocks that a quantization_config states."""
    groups = stated.get("config_groups")
    weights = (
        [g.get("weights") for g in groups.values() if isinstance(g, dict)]
        if isinstance(groups, dict)
        else []
    )
    for block in (
        stated.get("weight_block_size"),
        *(w.get("block_structure") for w in weights if isinstance(w, dict)),
    ):
        if isinstance(block, str):  # compressed-tensors once wrote "128x128"
            block = [int(n) if n.isdecimal() else n for n in block.split("x")]
        if isinstance(block, list) and len(block) == 2:
            yield block[0], block[1]


def _fits(scale: tuple[int, ...], codes: tuple[int, ...], block: tuple[int, int]) -> bool:
    """Whether scales of this shape are those of the blocks of a matrix, or of each matrix of a stack."""
    rows, columns = prod(codes[:-1]), codes[-1] if codes else 1
    high, wide = max(block[0], 1), max(block[1], 1)
    if len(codes) > 2 and codes[-2] % high and block[0] < rows:
        return False  # a block would reach into the next matrix
    expected = -(-rows // high), -(-columns // wide)
    if len(scale) < 2:
        return (prod(scale), 1) == expected
    if len(codes) > 2 and codes[-2] % high == 0:
        by_matrix = *codes[:-2], codes[-2] // high, expected[1]
        return scale in (expected, by_matrix)
    return scale == expected or (prod(scale) == 1 and expected == (1, 1))
