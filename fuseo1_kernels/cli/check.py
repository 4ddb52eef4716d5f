"""`--check`: says what is wrong with a config, without opening a model."""

from __future__ import annotations

import os

from ..errors import ConfigError
from .report import print_lines
from .terminal import escaped, say_json


def check_config(config: str, like_mergekit: bool, *, as_json: bool) -> int:
    """Print a line for each problem, or each note, of a config; return the exit code: 1 if there is a problem."""
    from ..config.load import as_config

    problems: list[str] = []
    notes: tuple[str, ...] = ()
    try:
        notes = as_config(config, like_mergekit=like_mergekit).notes
    except ConfigError as error:
        begin = f"{os.path.expanduser(config)}: "
        problems += [str(line).removeprefix(begin) for line in error.args]
    if as_json:
        found = {"problems": problems, "notes": notes}
        say_json({key: [*map(escaped, lines)] for key, lines in found.items()})
    else:
        lines = [f"problem: {problem}" for problem in problems] or [f"{config}: is valid"]
        print_lines([*lines, *(f"note: {note}" for note in notes)])
    return 1 if problems else 0
