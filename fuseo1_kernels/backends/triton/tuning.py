"""The tile size and the number of warps: tuned on the first large tensor of a kind, or fixed.

A whole op, survey or fuse, is timed as it is called: both are pure functions of their inputs, so trying configs
changes nothing. The choice is kept by op, device, number of targets and dtypes, not by shape. Bits never depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Config:
    """How the kernels that read whole tensors are launched.

    Attributes:
        rows: blocks of 256 elements in a program's tile, a power of two from 2 to 16.
        warps: warps of a program, a power of two from 1 to 8.
    """

    rows: int
    warps: int

    def __post_init__(self) -> None:
        if self.rows not in (2, 4, 8, 16) or self.warps not in (1, 2, 4, 8):
            raise ValueError(f"{self}: rows are 2, 4, 8 or 16, warps 1, 2, 4 or 8")


#: A warp's 32 lanes load a block of bf16 with 16 bytes each: these give a lane one load per input, or two.
#: Programs of one warp need no barriers, those of several have more warps in flight.
SPACE = (Config(2, 1), Config(4, 2), Config(4, 4), Config(8, 4), Config(8, 8))
DEFAULT = SPACE[0]
#: For the interpreter, whose time depends on the number of programs, not of elements.
FOR_INTERPRETER = Config(16, 4)
LEAST_ROWS = 2

#: Smaller tensors take as long as their launches: they get the config found before, or DEFAULT.
_LEAST_TUNED = 1 << 24
_ROUNDS = 5


def general_config(targets: int) -> Config:
    """The config of merges other than SCE's: not tuned, because every kind of parameters compiles a kernel of its own.

    fp64 takes twice the registers, so a lane has half as many elements, or a quarter.
    """
    return Config(4, 4) if targets <= 8 else Config(2, 4)


@dataclass
class Tuner:
    """Chooses a config. `fixed`: always that one."""

    fixed: Config | None = None
    _chosen: dict[Hashable, Config] = field(default_factory=dict)

    def choose(self, key: Hashable, numel: int, op: Callable[[Config], object]) -> Config:
        """The config for `key`. If there is none yet, times `op` and waits for the device, but not in a capture."""
        if self.fixed is not None:
            return self.fixed
        found = self._chosen.get(key)
        if found is None and numel >= _LEAST_TUNED:
            if torch.cuda.is_current_stream_capturing():
                return DEFAULT
            found = self._chosen[key] = min(SPACE, key=lambda config: _milliseconds(op, config))
        return found or DEFAULT


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _milliseconds(op: Callable[[Config], object], config: Config) -> float:
    """The time of the fastest of a few runs; the first, which compiles, does not count."""
    op(config)
    times = []
    for _ in range(_ROUNDS):
        start, end = (_event() for _ in range(2))
        start.record()
        op(config)
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)))
    return min(times)
