"""Average: the weighted mean of many checkpoints of one training run, by a schedule (docs/average.md)."""

from __future__ import annotations

import math
from functools import lru_cache

from ..errors import ConfigError
from .method import Parameter, Values, method
from .rule import Average, TensorSpec

SCHEDULES = ("sma", "ema", "wma", "1-sqrt")


@lru_cache(maxsize=8)
def schedule_weights(schedule: str, decay: float | None, checkpoints: int) -> tuple[float, ...]:
    """The weights of so many checkpoints, the oldest first; `decay` is for "ema" alone. They need not sum to 1."""
    n = checkpoints
    if schedule == "ema":
        assert decay is not None
        # The mean starts as the first checkpoint: m_1 = x_1, m_k = decay m_(k-1) + (1 - decay) x_k.
        return (decay ** (n - 1), *((1 - decay) * decay ** (n - k) for k in range(2, n + 1)))
    if schedule == "wma":
        return tuple(float(k) for k in range(1, n + 1))
    if schedule == "1-sqrt":
        # The update from checkpoint k to the next keeps the share 1 - sqrt(k / n). A checkpoint's weight is the drop of
        # that share (arXiv 2507.17634, theorem 3.1), here times sqrt(n).
        return tuple(math.sqrt(k) - math.sqrt(k - 1) for k in range(1, n + 1))
    return (1.0,) * n


def _average(values: Values, spec: TensorSpec) -> Average:
    schedule, decay = values["schedule"], values["decay"]
    if schedule == "ema" and decay is None:
        raise ConfigError("average: the schedule ema needs a decay, such as 0.9")
    if schedule != "ema" and decay is not None:
        raise ConfigError(
            f"average: decay is for the schedule ema, not for {schedule}; leave it out"
        )
    weights = schedule_weights(schedule, decay, len(spec.models))
    return Average(weights, math.fsum(weights))


AVERAGE = method(
    "average",
    "https://arxiv.org/abs/2507.17634",
    _average,
    Parameter("schedule", "choice", "sma", choices=SCHEDULES),
    Parameter("decay", "float", None, low=0.0, high=1.0),
    base="ignored",
)
