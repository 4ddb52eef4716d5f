"""Recognizes arguments in each other's place."""

from __future__ import annotations

import os

from ..config.recipes import find_recipe
from ..errors import ConfigError


def check_order(config: str, out: str | None) -> None:
    """Raise ConfigError if OUT, not CONFIG, is what names a config."""
    if out is None or find_recipe(config) is not None:
        return
    place = os.path.expanduser(config)
    if os.path.isdir(place) or not os.path.exists(place):
        is_recipe = find_recipe(out) is not None and not os.path.exists(out)
        if is_recipe or (os.path.isfile(out) and out.endswith((".yaml", ".yml"))):
            raise ConfigError(
                f"{config}: is no config, but {out} is: CONFIG comes first, then OUT, the directory of the merged model"
            )
