"""Tensors to measure with: one weight of a base model, and of fine-tunes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..backends.arrays import BY_NAME
from ..errors import ConfigError, counted

if TYPE_CHECKING:
    from ..checkpoint.header import TensorInfo

#: Standard deviation of the weights of a trained transformer's matrices, about.
BASE_STD = 0.02
#: That of a small model's (SmolLM2-135M), of which the shares of coarse data are known.
_COARSE_BASE_STD = 0.18

_DEFAULT_RMS = 1e-3
_SAMPLE = 1 << 16
_FILES = ".safetensors"


@dataclass(frozen=True)
class Data:
    """The elements of a base and its fine-tunes.

    Attributes:
        kind: "gauss": Gaussian task vectors of root mean square `value`, before they are rounded to their dtype, on a
            Gaussian base of 0.02. "coarse": those of a gentle fine-tune, on a Gaussian base of 0.18, so small beside
            it that rounding leaves the share `value` of the elements as they are in the base; the rest move by few
            steps of the dtype, so that scores tie in masses. In bf16 the shares 0.36, 0.78, 0.9 and 0.99 take 8e-4,
            1.4e-4, 4e-5 and 1.5e-6. "files": the tensors of `files`, base first.
    """

    kind: str
    value: float = 0.0
    files: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Data:
        """Of "gauss", "gauss:RMS", "coarse:SHARE" or "BASE.safetensors,TUNED.safetensors,...". Raises ConfigError."""
        files = tuple(text.split(","))
        if all(file.endswith(_FILES) for file in files):
            return cls("files", files=files)
        kind, colon, number = text.partition(":")
        try:
            value = float(number) if colon else _DEFAULT_RMS
        except ValueError:
            value = math.nan
        if kind == "gauss" and 0 < value < math.inf:
            return cls(kind, value)
        if kind == "coarse" and colon and 0 < value < 1:
            return cls(kind, value)
        raise ConfigError(
            f"data {text!r}: must be gauss, gauss:RMS (above 0), coarse:SHARE (between 0 and 1),"
            " or .safetensors files, base first, with commas between them"
        )

    def __str__(self) -> str:
        return ",".join(self.files) or f"{self.kind}:{self.value:g}"

    def make(
        self, shape: Sequence[int], tensors: int, dtype: torch.dtype, device: str = "cpu"
    ) -> list[torch.Tensor]:
        """Return a base and fine-tunes, `tensors` in all; the same numbers every time.

        From files come the tensors of that dtype that all of them have in the same shape, in the order of the first
        file's bytes, flattened, one after the other, as far as `shape` goes.

        Raises:
            MergeError: a file cannot be read, or there are too few files or elements.
        """
        if self.kind == "files":
            return [t.to(device) for t in _read(self.files, tuple(shape), tensors, dtype)]
        coarse = self.kind == "coarse"
        rms = _rms_leaving(self.value, dtype) if coarse else self.value
        std = _COARSE_BASE_STD if coarse else BASE_STD
        return siblings(tuple(shape), tensors - 1, rms=rms, std=std, dtype=dtype, device=device)


def siblings(
    shape: tuple[int, ...],
    targets: int = 3,
    *,
    rms: float = _DEFAULT_RMS,
    std: float = BASE_STD,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    device: str = "cpu",
) -> list[torch.Tensor]:
    """Return a Gaussian base of standard deviation `std` and `targets` fine-tunes of it.

    These are the base plus Gaussian task vectors of root mean square `rms`.
    """
    generator = torch.Generator(device).manual_seed(seed)
    base = (torch.randn(shape, generator=generator, device=device) * std).to(dtype)
    return [base, *(fine_tune(base, rms, generator) for _ in range(targets))]


def fine_tune(base: torch.Tensor, rms: float, generator: torch.Generator) -> torch.Tensor:
    """Return `base` plus a Gaussian task vector, rounded to the base's dtype."""
    drawn = torch.randn(base.shape, generator=generator, device=base.device)
    return drawn.mul_(rms).add_(base).to(base.dtype)


def _rms_leaving(share: float, dtype: torch.dtype) -> float:
    """The root mean square with which rounding to `dtype` leaves that share of a base unchanged, by bisection."""
    (base,) = siblings((_SAMPLE,), 0, std=_COARSE_BASE_STD, dtype=dtype)
    low, high = 1e-15, 1.0
    for _ in range(50):
        middle = math.sqrt(low * high)
        tuned = fine_tune(base, middle, torch.Generator().manual_seed(1))
        unchanged = torch.count_nonzero(tuned == base).item() / _SAMPLE
        low, high = (middle, high) if unchanged > share else (low, middle)
    return low


def _read(
    files: Sequence[str], shape: tuple[int, ...], tensors: int, dtype: torch.dtype
) -> list[torch.Tensor]:
    """The first `tensors` files' elements; see Data.make."""
    # Machines that measure kernels may lack pydantic, which this imports.
    from ..checkpoint.header import read_header

    if len(files) < tensors:
        raise ConfigError(
            f"data: the merge reads {counted(tensors, 'tensor')}, but there are {counted(len(files), 'file')}"
        )
    headers = [read_header(Path(file)).tensors for file in files[:tensors]]
    kind = BY_NAME[str(dtype).removeprefix("torch.")]
    common = [
        name
        for name, info in headers[0].items()
        if info.dtype == kind.code
        and all(
            name in other and (other[name].dtype, other[name].shape) == (info.dtype, info.shape)
            for other in headers
        )
    ]
    numel = math.prod(shape)
    there = sum(headers[0][name].numel for name in common)
    if there < numel:
        raise ConfigError(
            f"data: a shape of {numel} elements, but of tensors of {kind.name} that all files have in the same shape"
            f" there are {there}; choose a smaller shape"
        )
    return [
        _flattened([header[name] for name in common], numel, dtype).view(shape)
        for header in headers
    ]


def _flattened(infos: Sequence[TensorInfo], numel: int, dtype: torch.dtype) -> torch.Tensor:
    """The first `numel` elements of the tensors, one tensor after the other."""
    out = torch.empty(numel, dtype=dtype)
    to, at = out.view(torch.uint8).numpy().data, 0
    for info in infos:
        with info.file.open("rb") as file:
            file.seek(info.offset)
            at += file.readinto(to[at : at + info.nbytes])
    return out
