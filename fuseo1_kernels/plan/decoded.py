"""A computed input: a matrix of codes of 8 bits, decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..backends.arrays import BY_NAME, DType
from ..checkpoint.scales import Scaled
from .inputs import Input, Stored

#: Elements that are decoded at a time.
DECODED_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Decoded(Input):
    """A matrix of codes of 8 bits, each times the scale of its block, in fp32 (docs/arithmetic.md).

    Attributes:
        codes: the tensor of codes.
        scaled: its scales and their blocks.
    """

    codes: Stored
    scaled: Scaled

    @property
    def model(self) -> str:
        return self.codes.model

    @property
    def tensor(self) -> str:
        return self.codes.tensor

    @property
    def dtype(self) -> DType:
        return BY_NAME["float32"]

    @property
    def kept_dtype(self) -> DType:
        return BY_NAME["bfloat16"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def stored(self) -> tuple[Stored, ...]:
        return (self.codes, *([] if self.scales is None else [self.scales]))

    @property
    def scales(self) -> Stored | None:
        scale = self.scaled.scale
        return None if scale is None else Stored(self.codes.source, scale)

    @property
    def spec(self) -> Any:
        return ["decoded", self.codes.info.dtype, self.scaled.block]

    @property
    def scratch_bytes(self) -> int:
        # A piece of codes; the scales, as stored and in fp32.
        scales = 1 if self.scales is None else self.scales.info.numel
        return DECODED_AT_ONCE + 8 * scales
