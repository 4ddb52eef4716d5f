"""The options of a merge, their defaults and checks."""

from __future__ import annotations

from numbers import Integral

from ..errors import ConfigError

DEFAULT_SHARD_SIZE = 5_000_000_000


DEFAULT_MAX_MEMORY = 2 << 30


def check_sizes(**sizes: object) -> None:
    """Refuse a number of bytes, by its parameter's name, that is none."""
    for name, size in sizes.items():
        if not isinstance(size, Integral) or isinstance(size, bool):
            raise ConfigError(
                f"{name}: {size!r} is not a number of bytes; write for example 5 * 10**9 or 512 << 20"
            )
        if size < 1:
            raise ConfigError(f"{name}: {size}: a size must be positive")
