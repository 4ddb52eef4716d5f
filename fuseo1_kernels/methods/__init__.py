"""The table of merge methods: each is a record of its parameters and its rule for a tensor."""

from __future__ import annotations

from .arcee_fusion import ARCEE_FUSION
from .average import AVERAGE
from .karcher import KARCHER
from .linear import LINEAR, PASSTHROUGH
from .method import Method, Parameter, Scalar, Values
from .model_stock import MODEL_STOCK
from .multislerp import MULTISLERP
from .nearswap import NEARSWAP
from .ram import RAM, RAMPLUS_TL
from .rule import Average, ByColumn, ByRow, ByVector, Rule, TensorSpec
from .sce import SCE
from .slerp import NUSLERP, SLERP
from .task_arithmetic import TASK_ARITHMETIC

__all__ = [
    "METHODS",
    "Average",
    "ByColumn",
    "ByRow",
    "ByVector",
    "Method",
    "Parameter",
    "Rule",
    "Scalar",
    "TensorSpec",
    "Values",
]

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        SCE,
        *TASK_ARITHMETIC,
        LINEAR,
        SLERP,
        NUSLERP,
        MULTISLERP,
        MODEL_STOCK,
        KARCHER,
        NEARSWAP,
        ARCEE_FUSION,
        RAM,
        RAMPLUS_TL,
        PASSTHROUGH,
        AVERAGE,
    )
}
