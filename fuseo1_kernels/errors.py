"""The errors of this package: a user's mistake ends in one, with a message that says what to do."""

import difflib
from collections.abc import Iterable


class MergeError(Exception):
    """Base of every error that this package raises for bad input or a failed merge."""


class ConfigError(MergeError):
    """The configuration, a parameter or a recipe name is wrong."""


class CheckpointError(MergeError):
    """A model's files are missing, damaged or do not fit the other models."""


class BackendError(MergeError):
    """A backend was asked for that cannot run here, or it refused its arguments."""


class OutputError(MergeError):
    """The merged model cannot be written."""


def did_you_mean(word: object, valid: Iterable[str]) -> str:
    """Return the end of an error message: the valid word nearest to `word`, or all of them."""
    by_lower = {name.lower(): name for name in valid}
    near = difflib.get_close_matches(str(word).lower(), by_lower, n=1)
    if near:
        return f"; did you mean {by_lower[near[0]]!r}?"
    return f"; there are: {', '.join(by_lower.values())}"


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 file, 2 files."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def printable(name: str) -> str:
    """A tensor's name as a message shows it: as it is, unless it would break the line or worse."""
    return name if name.isprintable() else repr(name)
